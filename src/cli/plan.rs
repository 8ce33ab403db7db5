//! `plan`: what would be done and why, as text or as JSON in a stable order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::sources::{self, GatewayState, Sources};
use super::{Answer, CommandError, Output, PlanArguments, live, print};
use crate::api::condition::Verdict;
use crate::api::validated::{ValidatedApproval, ValidatedTrust};
use crate::api::{ABANDON, DeviceApproval, GROUP, GatewayTrust, ObjectKey, VERSION};
use crate::discovery::{GatewayView, NamespacePolicy, discover};
use crate::gateway::protocol::DeviceList;
use crate::plan::approvals::{self, ApprovalInput};
use crate::plan::trust;

fn namespaced<K: kube::ResourceExt>(object: &K) -> ObjectKey {
    ObjectKey::new(
        object.namespace().unwrap_or_else(|| "default".to_owned()),
        object.name_any(),
    )
}

/// Runs `plan`.
pub(super) async fn execute(arguments: PlanArguments) -> Result<Answer, CommandError> {
    let now = arguments.now.unwrap_or_else(Timestamp::now);
    let namespaces = NamespacePolicy::new(arguments.proxy_namespaces.iter().map(String::as_str));
    let mut found = if arguments.files.is_empty() {
        live::sources(arguments.allow_insecure_gateway_urls).await?
    } else {
        sources::read_files(&arguments.files)?
    };
    found.namespaces = namespaces;
    for given in &arguments.gateway_state {
        let (key, state) = sources::read_state(given)?;
        found.gateways.insert(key, state);
    }
    if let Some(file) = &arguments.record {
        record(file, &found)?;
    }
    let plan = make(&found, now);
    match arguments.output {
        Output::Json => print(&format!("{:#}\n", plan.document))?,
        Output::Yaml => print(&crate::folder::front::yaml(&plan.document).map_err(CommandError::Failed)?)?,
        Output::Text => print(&plan.text)?,
    }
    if !arguments.files.is_empty() && !plan.invalid.is_empty() {
        return Err(CommandError::Input(plan.invalid.join("\n")));
    }
    Ok(if arguments.exit_code && plan.changes {
        Answer::No
    } else {
        Answer::Yes
    })
}

fn record(file: &Path, sources: &Sources) -> Result<(), CommandError> {
    let states: Vec<_> = sources.gateways.iter().collect();
    let [(_, state)] = states.as_slice() else {
        return Err(CommandError::Input(format!(
            "--record takes one gateway, and there are {}",
            states.len()
        )));
    };
    let text = format!("{:#}\n", state.to_json());
    std::fs::write(file, text).map_err(|error| CommandError::Failed(format!("--record {}: {error}", file.display())))
}

/// A plan, printed.
#[derive(Debug)]
pub struct Printed {
    /// As JSON.
    pub document: Value,
    /// For people.
    pub text: String,
    /// Whether something would be changed.
    pub changes: bool,
    /// Objects of ours whose spec has no meaning, one sentence each.
    pub invalid: Vec<String>,
}

/// Plans every gateway of the sources. Pure: the same input gives the same output, byte for byte.
pub fn make(sources: &Sources, now: Timestamp) -> Printed {
    let mut gateways = Vec::new();
    let mut text = String::new();
    let mut changes = false;
    let mut trusts: Vec<(ObjectKey, &GatewayTrust)> = sources
        .dump
        .trusts
        .iter()
        .map(|(_, trust)| (namespaced(trust), trust))
        .collect();
    trusts.sort_by(|a, b| a.0.cmp(&b.0));
    for (key, trust) in trusts {
        let (document, words, changed) = one(sources, &key, trust, now);
        gateways.push(document);
        text.push_str(&words);
        changes |= changed;
    }
    let known: BTreeSet<ObjectKey> = sources.dump.trusts.iter().map(|(_, trust)| namespaced(trust)).collect();
    let orphans: BTreeSet<String> = sources
        .dump
        .approvals
        .iter()
        .map(|(_, approval)| approval)
        .filter(|approval| !known.contains(&gateway_of(approval)))
        .map(|approval| namespaced(approval).to_string())
        .collect();
    for orphan in &orphans {
        text.push_str(&format!(
            "DeviceApproval {orphan} refers to a GatewayTrust that is not in the input.\n"
        ));
    }
    let invalid = invalid(sources);
    if gateways.is_empty() {
        text.push_str("No GatewayTrust in the input.\n");
    }
    let ignored: BTreeMap<&String, &usize> = sources.dump.ignored.iter().collect();
    let document = json!({"apiVersion": format!("{GROUP}/{VERSION}"), "kind": "Plan", "gateways": gateways, "orphans": orphans, "ignored": ignored});
    Printed {
        document,
        text,
        changes,
        invalid,
    }
}

fn gateway_of(approval: &DeviceApproval) -> ObjectKey {
    ObjectKey::new(namespaced(approval).namespace, &approval.spec.gateway_trust_ref.name)
}

fn invalid(sources: &Sources) -> Vec<String> {
    let trusts = sources.dump.trusts.iter().filter_map(|(file, trust)| {
        let error = ValidatedTrust::parse(&trust.spec).err()?;
        Some(format!("{file}: GatewayTrust {}: {error}", namespaced(trust)))
    });
    let approvals = sources.dump.approvals.iter().filter_map(|(file, approval)| {
        let error = ValidatedApproval::parse(&approval.spec).err()?;
        Some(format!("{file}: DeviceApproval {}: {error}", namespaced(approval)))
    });
    trusts.chain(approvals).collect()
}

fn inputs(sources: &Sources, key: &ObjectKey) -> Vec<ApprovalInput> {
    let refers = |approval: &&DeviceApproval| gateway_of(approval) == *key;
    let mut inputs: Vec<ApprovalInput> = sources
        .dump
        .approvals
        .iter()
        .map(|(_, approval)| approval)
        .filter(refers)
        .map(input)
        .collect();
    inputs.sort_by(|a, b| a.key.cmp(&b.key));
    inputs
}

fn input(approval: &DeviceApproval) -> ApprovalInput {
    use kube::ResourceExt as _;
    let deleting = approval.metadata.deletion_timestamp.is_some();
    ApprovalInput {
        key: namespaced(approval),
        spec: if deleting {
            ValidatedApproval::parse_for_removal(&approval.spec)
        } else {
            ValidatedApproval::parse(&approval.spec)
        },
        deleting,
        // Applying the plan guards every approval first; the plan is about what follows.
        guarded: true,
        abandoned: approval.annotations().get(ABANDON).is_some_and(|value| value == "true"),
    }
}

fn verdict(verdict: &Verdict) -> Value {
    json!({"type": verdict.kind.as_str(), "status": verdict.truth.as_str(), "reason": verdict.reason.as_str(), "message": verdict.message})
}

fn one(sources: &Sources, key: &ObjectKey, trust: &GatewayTrust, now: Timestamp) -> (Value, String, bool) {
    let mut text = format!("GatewayTrust {key}\n");
    let parsed = match ValidatedTrust::parse(&trust.spec) {
        Ok(parsed) => parsed,
        Err(error) => {
            text.push_str(&format!("  invalid: {error}\n"));
            let condition =
                json!({"type": "Ready", "status": "False", "reason": "InvalidSpec", "message": error.to_string()});
            return (
                json!({"namespace": key.namespace, "name": key.name, "conditions": [condition]}),
                text,
                false,
            );
        }
    };
    let nothing = GatewayState::default();
    let state = sources
        .gateways
        .get(&Some(key.clone()))
        .or_else(|| sources.gateways.get(&None))
        .unwrap_or(&nothing);
    let discovery = discover(
        &sources.dump.snapshot,
        GatewayView { key, trust: &parsed },
        &sources.namespaces,
    );
    let plan = trust::plan(trust::Inputs {
        trust: &parsed,
        discovery: &discovery,
        config: state.config.as_ref(),
        owned: &state.owned,
    });
    let approvals = inputs(sources, key);
    let empty = DeviceList::default();
    let devices = approvals::plan(approvals::Inputs {
        approvals: &approvals,
        devices: state.devices.as_ref().unwrap_or(&empty),
        own_device: state.own_device.as_deref(),
        admit: trust.metadata.deletion_timestamp.is_none(),
        now,
    });

    for (prefix, chains) in &plan.trusted {
        text.push_str(&format!("  trust    {prefix}\n"));
        for chain in chains {
            text.push_str(&format!(
                "             because {}\n",
                crate::engine::report::chain(chain)
            ));
        }
    }
    for entry in &plan.withheld {
        text.push_str(&format!(
            "  withheld {} ({}): {}\n",
            entry.candidate, entry.reason, entry.hint
        ));
    }
    match (&plan.change, &state.config) {
        (Some(change), _) => text.push_str(&format!(
            "  config   {} (closes every connected client once)\n",
            change.summary()
        )),
        (None, Some(_)) => text.push_str("  config   no change\n"),
        (None, None) => text.push_str("  config   not known: give it by --gateway-state\n"),
    }
    for device in &devices.devices {
        let excess = if device.excess.is_empty() {
            String::new()
        } else {
            format!(": {}", device.excess.join(", "))
        };
        let id: String = device.device_id.chars().take(12).collect();
        text.push_str(&format!(
            "  device   {id} {} ({}{excess})\n",
            device.verdict.as_str(),
            device.reason
        ));
    }
    let mut conditions: Vec<&Verdict> = plan.verdicts.iter().collect();
    let enforced = approvals::enforced(&devices, plan.enforce);
    if state.devices.is_some() {
        conditions.push(&enforced);
    }
    conditions.sort_by_key(|verdict| verdict.kind);
    for condition in &conditions {
        text.push_str(&format!(
            "  {} {} {}: {}\n",
            condition.kind.as_str(),
            condition.truth.as_str(),
            condition.reason,
            condition.message
        ));
    }
    let changes = plan.change.is_some() || !devices.actions.is_empty();
    let device_list: Vec<Value> = devices
        .devices
        .iter()
        .map(|device| {
            json!({
                "deviceId": device.device_id, "requestId": device.request_id, "role": device.role, "verdict": device.verdict.as_str(),
                "reason": device.reason.as_str(), "excess": device.excess, "approval": device.approvals.first().map(ToString::to_string),
            })
        })
        .collect();
    let trusted: Vec<Value> = plan
        .trusted
        .iter()
        .map(|(prefix, chains)| json!({"cidr": prefix, "via": chains.iter().flatten().collect::<Vec<_>>()}))
        .collect();
    let document = json!({
        "namespace": key.namespace, "name": key.name,
        "trustedProxies": trusted,
        "withheld": plan.withheld,
        "config": {"known": state.config.is_some(), "changes": plan.change.is_some(), "patch": plan.change.as_ref().map_or(json!({}), |change| change.patch.merge())},
        "devices": device_list,
        "conditions": conditions.into_iter().map(verdict).collect::<Vec<_>>(),
    });
    (document, text, changes)
}
