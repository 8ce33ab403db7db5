//! From what the lanes know to the statuses that people read. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::link::Link;
use super::{Desired, approvals_lane, trust_lane};
use crate::api::condition::{ConditionType, Truth, Verdict, shorten};
use crate::api::gateway_trust::{
    DeviceCounts, GatewayInfo, GatewayTrustStatus, Mode, PendingDevice, STATUS_LIST_LIMIT, TrustedProxy, Withheld,
};
use crate::api::{ABANDON, DeviceApprovalStatus, Reason};
use crate::cidr::Prefix;
use crate::discovery::Evidence;
use crate::plan::approvals::{ApprovalOutcome, DeviceVerdict, enforced};

/// What a status is made from.
pub struct Sources<'a, D> {
    /// What is desired.
    pub desired: &'a Desired,
    /// The connection.
    pub link: &'a Link<D>,
    /// The version of the gateway, where it is connected.
    pub version: Option<&'a str>,
    /// What the trust lane knows.
    pub trust: Option<&'a trust_lane::Facts>,
    /// What the approvals lane knows.
    pub approvals: Option<&'a approvals_lane::Facts>,
    /// The time.
    pub now: Timestamp,
}

/// A chain of evidence in one line.
pub fn chain(evidence: &[Evidence]) -> String {
    shorten(
        &evidence
            .iter()
            .map(Evidence::to_string)
            .collect::<Vec<_>>()
            .join(" <- "),
        512,
    )
}

fn total(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn trusted_list(
    trusted: &BTreeMap<Prefix, Vec<Vec<Evidence>>>,
    previous: &[TrustedProxy],
    now: Timestamp,
) -> Vec<TrustedProxy> {
    let since: BTreeMap<&str, Timestamp> = previous
        .iter()
        .map(|entry| (entry.cidr.as_str(), entry.since))
        .collect();
    let entries = trusted.iter().take(STATUS_LIST_LIMIT).map(|(prefix, chains)| {
        let cidr = prefix.to_string();
        TrustedProxy {
            since: since.get(cidr.as_str()).copied().unwrap_or(now),
            via: chains.iter().take(8).map(|evidence| chain(evidence)).collect(),
            cidr,
        }
    });
    entries.collect()
}

/// The status of a `GatewayTrust`.
pub fn trust_status<D>(sources: &Sources<'_, D>, previous: &GatewayTrustStatus) -> GatewayTrustStatus {
    let now = sources.now;
    let mut status = previous.clone();
    let generation = spoken_of(sources, previous);
    status.observed_generation = generation;
    if let Link::Up(up) = sources.link {
        status.gateway = Some(GatewayInfo {
            version: sources.version.unwrap_or_default().to_owned(),
            url: shorten(&up.shown, 512),
            door: "WebSocket".to_owned(),
            operator_device: up.own_device.to_string(),
        });
    }
    if let Some(facts) = sources.trust {
        status.trusted_proxies_total = total(facts.plan.trusted.len());
        status.trusted_proxies = trusted_list(&facts.plan.trusted, &previous.trusted_proxies, now);
        status.withheld_total = total(facts.plan.withheld.len());
        let withheld = facts.plan.withheld.iter().take(STATUS_LIST_LIMIT);
        status.withheld = withheld
            .map(|entry| Withheld {
                candidate: shorten(&entry.candidate, 512),
                reason: entry.reason.clone(),
                hint: shorten(&entry.hint, 1024),
            })
            .collect();
        status.policy_changes = Some(facts.changes.clone());
    }
    if let (Some(facts), Link::Up(up)) = (sources.approvals.filter(|facts| facts.live), sources.link) {
        let own = up.own_device.as_str();
        let paired = facts
            .devices
            .paired
            .iter()
            .filter(|record| record.device_id != own)
            .count();
        let pending = facts
            .devices
            .pending
            .iter()
            .filter(|record| record.device_id != own)
            .count();
        let unmanaged = facts
            .plan
            .devices
            .iter()
            .filter(|device| device.verdict == DeviceVerdict::Unmanaged && device.request_id.is_none())
            .count();
        status.devices = Some(DeviceCounts {
            paired: total(paired),
            pending: total(pending),
            unmanaged: total(unmanaged),
        });
        status.pending_total = total(pending);
        status.pending = pending_list(facts, own, &previous.pending, now);
    }
    let verdicts = trust_verdicts(sources);
    status.conditions = conditions(verdicts, &previous.conditions, generation, now);
    status
}

/// The generation that this status speaks of: the newest only where both lanes have planned for it.
fn spoken_of<D>(sources: &Sources<'_, D>, previous: &GatewayTrustStatus) -> Option<i64> {
    let newest = sources.desired.generation;
    let planned = sources.trust.is_some_and(|facts| facts.generation == newest)
        && sources
            .approvals
            .is_some_and(|facts| facts.desired.generation == newest);
    if planned || sources.desired.spec.is_err() {
        newest
    } else {
        previous.observed_generation
    }
}

fn pending_list(
    facts: &approvals_lane::Facts,
    own: &str,
    previous: &[PendingDevice],
    now: Timestamp,
) -> Vec<PendingDevice> {
    let decided: BTreeMap<&str, _> = facts
        .plan
        .devices
        .iter()
        .map(|device| (device.device_id.as_str(), device))
        .collect();
    let first_seen: BTreeMap<&str, Timestamp> = previous
        .iter()
        .map(|device| (device.device_id.as_str(), device.since))
        .collect();
    let mut pending: Vec<_> = facts
        .devices
        .pending
        .iter()
        .filter(|record| record.device_id != own)
        .collect();
    pending.sort_by(|a, b| (a.since, &a.device_id).cmp(&(b.since, &b.device_id)));
    let entries = pending.into_iter().take(STATUS_LIST_LIMIT).map(|record| {
        let verdict = decided
            .get(record.device_id.as_str())
            .map_or_else(String::new, |device| {
                let excess = if device.excess.is_empty() {
                    String::new()
                } else {
                    format!(": {}", device.excess.join(", "))
                };
                format!("{}/{}{excess}", device.verdict.as_str(), device.reason)
            });
        PendingDevice {
            device_id: shorten(&record.device_id, 128),
            role: shorten(&record.asked.roles.iter().cloned().collect::<Vec<_>>().join(","), 128),
            scopes: record
                .asked
                .scopes
                .iter()
                .take(32)
                .map(|scope| shorten(scope, 128))
                .collect(),
            since: record
                .since
                .or_else(|| first_seen.get(record.device_id.as_str()).copied())
                .unwrap_or(now),
            verdict: shorten(&verdict, 512),
        }
    });
    entries.collect()
}

fn trust_verdicts<D>(sources: &Sources<'_, D>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    let reachable = match sources.link {
        Link::Up(up) => Verdict::new(
            ConditionType::GatewayReachable,
            true,
            Reason::Connected,
            format!("Connected to {} and paired.", up.shown),
        ),
        Link::Down { reason, message, .. } => {
            Verdict::new(ConditionType::GatewayReachable, false, *reason, message.clone())
        }
        Link::Again => Verdict::new(
            ConditionType::GatewayReachable,
            Truth::Unknown,
            Reason::Disconnected,
            "Connecting.",
        ),
    };
    verdicts.push(reachable);
    if let Err(error) = &sources.desired.spec {
        verdicts.push(Verdict::new(
            ConditionType::Ready,
            false,
            Reason::InvalidSpec,
            error.to_string(),
        ));
        return verdicts;
    }
    match sources.trust {
        Some(facts) => verdicts.extend(facts.plan.verdicts.iter().cloned()),
        None => verdicts.push(Verdict::new(
            ConditionType::TrustApplied,
            Truth::Unknown,
            Reason::Pending,
            "Not looked at yet.",
        )),
    }
    verdicts.push(approvals_verdict(sources));
    verdicts.push(degraded(sources));
    let ready = ready(sources, &verdicts);
    verdicts.push(ready);
    verdicts
}

fn approvals_verdict<D>(sources: &Sources<'_, D>) -> Verdict {
    let kind = ConditionType::ApprovalsEnforced;
    let enforce = sources
        .desired
        .spec
        .as_ref()
        .is_ok_and(|spec| spec.mode == Mode::Enforce);
    match (sources.link, sources.approvals) {
        (Link::Up(_), Some(facts)) if facts.live => match (&facts.claimed_by, &facts.problem) {
            (Some(other), _) => Verdict::new(
                kind,
                false,
                Reason::GatewayClaimed,
                format!(
                    "Another operator manages this gateway already: {other}. Nothing is written. If that operator is gone for good, remove its device: openclaw devices remove <id>"
                ),
            ),
            (None, Some(problem)) => Verdict::new(kind, false, Reason::CallFailed, format!("{problem}; tried again.")),
            (None, None) => enforced(&facts.plan, enforce),
        },
        (
            Link::Up(_),
            Some(approvals_lane::Facts {
                problem: Some(problem), ..
            }),
        ) => Verdict::new(kind, false, Reason::CallFailed, format!("{problem}; tried again.")),
        (Link::Up(_) | Link::Again, _) => Verdict::new(kind, Truth::Unknown, Reason::Pending, "Not looked at yet."),
        (Link::Down { .. }, _) => Verdict::new(
            kind,
            false,
            Reason::GatewayNotReady,
            "The gateway cannot be reached; see GatewayReachable. Devices that were let in stay in, nobody new is.",
        ),
    }
}

fn degraded<D>(sources: &Sources<'_, D>) -> Verdict {
    let kind = ConditionType::Degraded;
    if sources.trust.is_some_and(|facts| facts.admin_rpc) {
        return Verdict::new(
            kind,
            true,
            Reason::AdminRpcBypassesPairing,
            "The gateway's admin HTTP RPC plugin is on: whoever holds the gateway token, that is every client, can approve itself, so pairing protects nothing. Turn it off, in the gateway's container: openclaw config set plugins.entries.admin-http-rpc.enabled false",
        );
    }
    let faults = sources.trust.and_then(|facts| {
        facts
            .plan
            .verdicts
            .iter()
            .find(|verdict| verdict.reason == Reason::SourceUnavailable)
    });
    match faults {
        Some(verdict) => Verdict::new(kind, true, verdict.reason, verdict.message.clone()),
        None => Verdict::new(kind, false, Reason::NothingWrong, "Nothing to complain of."),
    }
}

fn ready<D>(sources: &Sources<'_, D>, verdicts: &[Verdict]) -> Verdict {
    let kind = ConditionType::Ready;
    if sources.desired.deleting {
        return Verdict::new(
            kind,
            false,
            Reason::Deleting,
            "Being deleted; approvals that are being deleted are revoked first. The gateway's trusted proxies stay as they are.",
        );
    }
    let needed = [
        ConditionType::GatewayReachable,
        ConditionType::ProxiesDiscovered,
        ConditionType::TrustApplied,
        ConditionType::ApprovalsEnforced,
    ];
    let observing = |verdict: &&Verdict| verdict.reason == Reason::Observing;
    let worst = needed
        .iter()
        .filter_map(|kind| verdicts.iter().find(|verdict| verdict.kind == *kind))
        .filter(|verdict| !observing(verdict));
    let worst = worst
        .clone()
        .find(|verdict| verdict.truth == Truth::False)
        .or_else(|| worst.clone().find(|verdict| verdict.truth == Truth::Unknown));
    match worst {
        Some(verdict) => Verdict::new(kind, verdict.truth, verdict.reason, verdict.message.clone()),
        None if sources
            .desired
            .spec
            .as_ref()
            .is_ok_and(|spec| spec.mode == Mode::Observe) =>
        {
            Verdict::new(
                kind,
                true,
                Reason::Observing,
                "mode: Observe. Nothing is written; the other conditions and `gatewaytrust plan` show what would be.",
            )
        }
        None => Verdict::new(
            kind,
            true,
            Reason::AsDeclared,
            "The gateway trusts the declared proxies, and its devices are as Git says.",
        ),
    }
}

/// The status of one approval.
pub fn approval_status<D>(
    sources: &Sources<'_, D>,
    outcome: &ApprovalOutcome,
    generation: Option<i64>,
    previous: &DeviceApprovalStatus,
) -> DeviceApprovalStatus {
    let known = matches!(sources.link, Link::Up(_));
    let mut status = previous.clone();
    status.observed_generation = generation;
    status.device_id = outcome.device_id.as_ref().map(ToString::to_string);
    let mut verdicts = outcome.verdicts.clone();
    if sources
        .desired
        .spec
        .as_ref()
        .is_ok_and(|spec| spec.mode == Mode::Observe)
    {
        for verdict in verdicts
            .iter_mut()
            .filter(|verdict| verdict.kind == ConditionType::Approved && verdict.truth == Truth::False)
        {
            verdict.message = format!("mode: Observe, so nothing is done. Otherwise: {}", verdict.message);
        }
    }
    if known {
        let paired = outcome.paired.as_ref();
        status.request_id = outcome.request_id.as_ref().map(|id| shorten(id, 128));
        status.approved_at = paired.and_then(|record| record.approved_at);
        status.approved_via = paired
            .and_then(|record| record.approved_via.as_ref())
            .map(|via| shorten(via, 64));
        status.granted_roles = paired
            .map(|record| {
                record
                    .holds
                    .roles
                    .iter()
                    .take(8)
                    .map(|role| shorten(role, 64))
                    .collect()
            })
            .unwrap_or_default();
        status.granted_scopes = paired
            .map(|record| {
                record
                    .holds
                    .scopes
                    .iter()
                    .take(32)
                    .map(|scope| shorten(scope, 128))
                    .collect()
            })
            .unwrap_or_default();
        if let Some(other) = sources.approvals.and_then(|facts| facts.claimed_by.as_ref()) {
            verdicts.retain(|verdict| verdict.kind != ConditionType::Ready);
            verdicts.push(Verdict::new(
                ConditionType::Ready,
                false,
                Reason::GatewayClaimed,
                format!("Another operator manages this gateway already: {other}."),
            ));
        }
    } else {
        for verdict in &mut verdicts {
            let settled = matches!(
                verdict.reason,
                Reason::InvalidSpec | Reason::OwnDevice | Reason::Conflict | Reason::Expired
            );
            if verdict.kind != ConditionType::Ready {
                verdict.truth = Truth::Unknown;
            }
            if !settled {
                if verdict.kind == ConditionType::Ready {
                    verdict.truth = Truth::False;
                }
                let deleting = verdict.reason == Reason::Deleting;
                verdict.reason = if deleting {
                    Reason::Deleting
                } else {
                    Reason::GatewayNotReady
                };
                verdict.message = if deleting {
                    format!(
                        "Deletion waits: the device has to be revoked first, and the gateway cannot be reached (see its GatewayTrust). It goes on by itself then. To give up revoking: kubectl annotate deviceapproval -n {} {} {ABANDON}=true",
                        outcome.key.namespace, outcome.key.name
                    )
                } else {
                    "The gateway cannot be reached at present; the condition GatewayReachable of its GatewayTrust says why.".to_owned()
                };
            }
        }
    }
    status.conditions = conditions(verdicts, &previous.conditions, generation, sources.now);
    status
}

fn conditions(
    mut verdicts: Vec<Verdict>,
    previous: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    verdicts.sort_by_key(|verdict| verdict.kind);
    verdicts
        .into_iter()
        .map(|verdict| verdict.into_condition(previous, generation, now))
        .collect()
}
