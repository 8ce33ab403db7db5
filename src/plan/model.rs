//! A model of the gateway, as it was measured, and the properties that every plan has on it.
//!
//! The model unites an old grant with what is pending, merges requests into one record a device, keeps the list of
//! trusted proxies as it is given. The end-to-end tests run the same scenarios on the real gateway.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;

use super::approvals::{Action, ApprovalInput, ApprovalsPlan, DeviceVerdict};
use super::{approvals, trust};
use crate::api::device_approval::{Decision, DeletionPolicy};
use crate::api::gateway_trust::{Adopt, Enrolment, Mode};
use crate::api::validated::{Grant, Origin, RangeClaim, Target, ValidatedApproval, ValidatedTrust};
use crate::api::{ObjectKey, PublicKey, Reason};
use crate::cidr::{Limits, Prefix, as_the_gateway_reads, same_addresses};
use crate::cluster::Snapshot;
use crate::discovery::{GatewayView, NamespacePolicy, discover};
use crate::gateway::protocol::{DeviceList, GatewayConfig, PairedRecord, PendingRecord};

/// The pairing store and the config of a gateway.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The pairing store.
    pub devices: DeviceList,
    /// The config.
    pub config: GatewayConfig,
    /// How many requests there have been.
    pub requests: usize,
}

impl Model {
    /// A device asks to be paired, as at the real gateway: it is let in if it holds that already; else its request
    /// is merged with the one that waits, under a new id.
    pub fn ask(&mut self, key: PublicKey, asked: Grant) {
        let device_id = key.device_id().to_string();
        let holds = self
            .devices
            .paired
            .iter()
            .find(|record| record.device_id == device_id)
            .map(|record| &record.holds);
        if holds.is_some_and(|holds| holds.excess_of(&asked).is_empty()) {
            return;
        }
        let waiting = self
            .devices
            .pending
            .iter()
            .position(|record| record.device_id == device_id);
        let before = waiting
            .map(|index| self.devices.pending.remove(index).asked)
            .unwrap_or_default();
        self.requests += 1;
        self.devices.pending.push(PendingRecord {
            request_id: format!("request-{}", self.requests),
            device_id,
            public_key: key.to_string(),
            asked: before.union(&asked),
            since: None,
            client: "cli".to_owned(),
        });
    }

    /// One call, as the real gateway does it.
    pub fn apply(&mut self, action: &Action) {
        match action {
            Action::Approve { request_id, .. } => {
                let Some(index) = self
                    .devices
                    .pending
                    .iter()
                    .position(|record| &record.request_id == request_id)
                else {
                    return;
                };
                let request = self.devices.pending.remove(index);
                let old = self
                    .devices
                    .paired
                    .iter()
                    .position(|record| record.device_id == request.device_id);
                let held = old
                    .map(|index| self.devices.paired.remove(index).holds)
                    .unwrap_or_default();
                self.devices.paired.push(PairedRecord {
                    device_id: request.device_id,
                    public_key: request.public_key,
                    display_name: String::new(),
                    holds: held.union(&request.asked),
                    approved_at: None,
                    approved_via: Some("owner".to_owned()),
                    connected: false,
                });
            }
            Action::Reject { request_id, .. } => self.devices.pending.retain(|record| &record.request_id != request_id),
            Action::Remove { device_id, .. } => self.devices.paired.retain(|record| &record.device_id != device_id),
        }
    }
}

/// A key of a small family of devices.
pub fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32])
}

/// A grant from plain words.
pub fn grant(roles: &[&str], scopes: &[&str]) -> Grant {
    Grant {
        roles: roles.iter().map(ToString::to_string).collect(),
        scopes: scopes.iter().map(ToString::to_string).collect(),
    }
}

/// An approval of a device.
pub fn approval(name: &str, device: u8, grant: Grant) -> ApprovalInput {
    ApprovalInput {
        key: ObjectKey::new("ns", name),
        spec: Ok(ValidatedApproval {
            device: key(device).device_id(),
            key: Some(key(device)),
            decision: Decision::Approve,
            grant,
            expires_at: None,
            deletion_policy: DeletionPolicy::Revoke,
            label: None,
        }),
        deleting: false,
        guarded: true,
        abandoned: false,
    }
}

fn plan(model: &Model, approvals: &[ApprovalInput], now: Timestamp) -> ApprovalsPlan {
    approvals::plan(approvals::Inputs {
        approvals,
        devices: &model.devices,
        own_device: None,
        admit: true,
        now,
    })
}

const SCOPES: [&str; 5] = [
    "operator.read",
    "operator.write",
    "operator.admin",
    "operator.pairing",
    "operator.talk",
];

fn any_grant() -> impl Strategy<Value = Grant> {
    (
        prop::sample::subsequence(vec!["operator", "node"], 1..=2),
        prop::sample::subsequence(SCOPES.to_vec(), 0..=4),
    )
        .prop_map(|(roles, scopes)| grant(&roles, &scopes))
}

fn any_approval() -> impl Strategy<Value = ApprovalInput> {
    (
        0u8..4,
        0u8..4,
        any_grant(),
        any::<[bool; 5]>(),
        prop::option::of(0i64..100),
    )
        .prop_map(
            |(name, device, grant, [reject, deleting, retain, unguarded, abandoned], expires)| {
                let mut input = approval(&format!("approval-{name}-{device}"), device, grant);
                input.deleting = deleting;
                input.guarded = !unguarded;
                input.abandoned = abandoned && deleting;
                if let Ok(spec) = &mut input.spec {
                    spec.expires_at = expires.and_then(|second| Timestamp::from_second(second).ok());
                    spec.decision = if reject { Decision::Reject } else { Decision::Approve };
                    spec.deletion_policy = if retain {
                        DeletionPolicy::Retain
                    } else {
                        DeletionPolicy::Revoke
                    };
                }
                input
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever devices ask and whatever Git says: the plan is a fixed point after it was applied, and no device
    /// that some approval in force names holds more than every one of them covers.
    #[test]
    fn an_applied_plan_leaves_nothing_to_do_and_nothing_too_much(
        asks in prop::collection::vec((0u8..4, any_grant()), 0..6),
        later in prop::collection::vec((0u8..4, any_grant()), 0..4),
        before in prop::collection::vec(any_approval(), 0..5),
        after in prop::collection::vec(any_approval(), 0..5),
        now in 0i64..100,
    ) {
        let now = Timestamp::from_second(now).expect("in range");
        let mut model = Model::default();
        for (asks, approvals) in [(asks, before), (later, after)] {
            for (device, asked) in asks {
                model.ask(key(device), asked);
            }
            let first = plan(&model, &approvals, now);
            for action in &first.actions {
                model.apply(action);
            }
            let again = plan(&model, &approvals, now);
            prop_assert!(again.actions.is_empty(), "{:?} then {:?}", first.actions, again.actions);
            for input in approvals.iter().filter(|input| !input.deleting) {
                let Ok(spec) = &input.spec else { continue };
                let Some(record) = model.devices.paired.iter().find(|record| record.device_id == spec.device.as_str()) else { continue };
                if spec.is_expired(now) {
                    continue;
                }
                prop_assert!(spec.decision == Decision::Approve, "a rejected device is paired");
                let unsettled = approvals.iter().any(|other| !other.guarded && !other.deleting && other.spec.as_ref().is_ok_and(|other| other.device == spec.device));
                prop_assert!(unsettled || spec.grant.excess_of(&record.holds).is_empty(), "{:?} exceeds {:?}", record.holds, spec.grant);
            }
        }
    }

    /// Nothing is approved for a device that no approval in force names, or that the one in force does not cover.
    #[test]
    fn only_what_git_covers_is_approved(
        asks in prop::collection::vec((0u8..4, any_grant()), 1..6),
        approvals in prop::collection::vec(any_approval(), 0..5),
        now in 0i64..100,
    ) {
        let now = Timestamp::from_second(now).expect("in range");
        let mut model = Model::default();
        for (device, asked) in asks {
            model.ask(key(device), asked);
        }
        for action in plan(&model, &approvals, now).actions {
            if let Action::Approve { device_id, request_id, .. } = action {
                let request = model.devices.pending.iter().find(|record| record.request_id == request_id).expect("a request that waits");
                let in_force: Vec<_> = approvals.iter().filter(|input| !input.deleting).filter_map(|input| input.spec.as_ref().ok().map(|spec| (input, spec)))
                    .filter(|(_, spec)| spec.device.as_str() == device_id && !spec.is_expired(now)).collect();
                prop_assert!(!in_force.is_empty());
                for (input, spec) in in_force {
                    prop_assert!(input.guarded && spec.decision == Decision::Approve);
                    prop_assert!(spec.grant.excess_of(&request.asked).is_empty());
                }
            }
        }
    }

    /// A write of the trusted proxies is needed at most once; what was there before stays with `Merge`, and
    /// another spelling needs none.
    #[test]
    fn an_applied_trust_plan_leaves_nothing_to_write(
        existing in prop::collection::vec(any_entry(), 0..6),
        declared in prop::collection::vec(any_entry(), 0..6),
        owned in prop::collection::vec(any_entry(), 0..3),
        replace in any::<bool>(),
    ) {
        let trust = trust_of(&declared, replace);
        let key = ObjectKey::new("ns", "name");
        let discovery = discover(&Snapshot::none(), GatewayView { key: &key, trust: &trust }, &NamespacePolicy::default());
        let owned: BTreeSet<Prefix> = owned.iter().filter_map(|text| Prefix::parse(text).ok()).collect();
        let mut model = Model::default();
        model.config.trusted_proxies = Some(existing.clone());
        let before = model.config.clone();
        let first = trust::plan(trust::Inputs { trust: &trust, discovery: &discovery, config: Some(&model.config), owned: &owned });
        if let Some(change) = &first.change {
            for entry in &change.patch.trusted_proxies {
                let read = as_the_gateway_reads(entry).map(|net| net.to_string());
                prop_assert_eq!(read.as_ref(), Some(entry), "what is written reads back as it is");
            }
            model.config.trusted_proxies = Some(change.patch.trusted_proxies.clone());
        }
        let again = trust::plan(trust::Inputs { trust: &trust, discovery: &discovery, config: Some(&model.config), owned: &first.owned_after });
        prop_assert_eq!(&again.change, &None, "after {:?}", first.change);

        let read = |config: &GatewayConfig| config.trusted_proxies.iter().flatten().filter_map(|text| as_the_gateway_reads(text)).collect::<Vec<_>>();
        let now = same_addresses(read(&model.config));
        for prefix in first.trusted.keys() {
            prop_assert!(now.iter().any(|net| net.contains(&prefix.net())), "{prefix} is not trusted");
        }
        if !replace {
            for net in read(&before) {
                let ours = owned.iter().any(|prefix| prefix.net() == net);
                prop_assert!(ours || now.iter().any(|kept| kept.contains(&net)), "{net} was taken away silently");
            }
        }
        let mut spelled = model.config.clone();
        spelled.trusted_proxies = spelled.trusted_proxies.map(|mut entries| {
            entries.reverse();
            entries.iter().map(|entry| entry.trim_end_matches("/32").to_owned()).collect()
        });
        let other = trust::plan(trust::Inputs { trust: &trust, discovery: &discovery, config: Some(&spelled), owned: &first.owned_after });
        prop_assert_eq!(&other.change, &None, "another spelling is no change");
    }
}

fn any_entry() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => (0u8..3, 0u8..6).prop_map(|(third, fourth)| format!("10.0.{third}.{fourth}")),
        3 => (0u8..3, 24u8..=32).prop_map(|(third, length)| format!("10.0.{third}.0/{length}")),
        1 => Just("not-an-ip".to_owned()),
        1 => Just("10.0.1.7/24".to_owned()),
        1 => Just("0.0.0.0/0".to_owned()),
        1 => Just("fd00::5".to_owned()),
    ]
}

/// A spec that declares these ranges.
pub fn trust_of(declared: &[String], replace: bool) -> ValidatedTrust {
    let limits = Limits::default();
    let claim = |text: &String| RangeClaim {
        written: text.clone(),
        reason: "said so".to_owned(),
        prefix: Prefix::parse(text).and_then(|prefix| limits.check(prefix)),
    };
    ValidatedTrust {
        target: Target::Url(Origin::parse("http://127.0.0.1:18789/").expect("url")),
        credential: None,
        ca: None,
        server_name: None,
        enrolment: Enrolment::Auto,
        mode: Mode::Enforce,
        discover: crate::api::gateway_trust::Discover::Auto,
        named: Vec::new(),
        ranges: declared.iter().map(claim).collect(),
        adopt: if replace { Adopt::Replace } else { Adopt::Merge },
        limits,
    }
}

fn verdicts(plan: &ApprovalsPlan) -> BTreeMap<&str, (DeviceVerdict, Reason)> {
    plan.devices
        .iter()
        .map(|device| (device.device_id.as_str(), (device.verdict, device.reason)))
        .collect()
}

fn message(plan: &ApprovalsPlan, name: &str, kind: &str) -> String {
    let outcome = plan
        .outcomes
        .iter()
        .find(|outcome| outcome.key.name == name)
        .expect(name);
    let verdict = outcome
        .verdicts
        .iter()
        .find(|verdict| verdict.kind.as_str() == kind)
        .expect(kind);
    format!("{} {}: {}", verdict.truth.as_str(), verdict.reason, verdict.message)
}

#[test]
fn a_device_that_asks_for_more_is_held_and_the_excess_is_named() {
    let mut model = Model::default();
    model.ask(key(1), grant(&["operator"], &["operator.read", "operator.admin"]));
    let approvals = [approval("laptop", 1, grant(&["operator"], &["operator.read"]))];
    let held = plan(&model, &approvals, Timestamp::UNIX_EPOCH);
    assert!(held.actions.is_empty());
    insta::assert_snapshot!(message(&held, "laptop", "Approved"), @"False AsksForMore: Held: the device asks for more than this approves: operator.admin. It asks for operator.admin, operator.read; approved are operator.read. Add what it should have to spec.scopes or spec.roles, or have it ask for less and reject the old request: openclaw devices reject request-1");
    insta::assert_snapshot!(message(&held, "laptop", "Ready"), @"True InForce: In force.");
}

#[test]
fn what_counts_is_what_the_device_would_hold_afterwards() {
    // It holds the role node by an earlier approval; now it asks for operator.read only. The gateway would unite both.
    let mut model = Model::default();
    model.ask(key(1), grant(&["node"], &[]));
    let all = plan(
        &model,
        &[approval("a", 1, grant(&["node"], &[]))],
        Timestamp::UNIX_EPOCH,
    )
    .actions;
    all.iter().for_each(|action| model.apply(action));
    model.ask(key(1), grant(&["operator"], &["operator.read"]));
    let narrower = [approval("a", 1, grant(&["operator"], &["operator.read"]))];
    let plan = plan(&model, &narrower, Timestamp::UNIX_EPOCH);
    let kinds: Vec<&str> = plan
        .actions
        .iter()
        .map(|action| {
            if matches!(action, Action::Remove { .. }) {
                "remove"
            } else {
                "approve"
            }
        })
        .collect();
    assert_eq!(kinds, ["remove", "approve"], "the old grant goes first");
}

#[test]
fn implied_scopes_are_no_excess() {
    let admin = grant(&["operator"], &["operator.admin"]);
    assert!(
        admin
            .excess_of(&grant(&["operator"], &["operator.read", "operator.talk.secrets"]))
            .is_empty()
    );
    let write = grant(&["operator"], &["operator.write"]);
    assert_eq!(
        write.excess_of(&grant(
            &["operator"],
            &["operator.read", "operator.talk", "operator.pairing"]
        )),
        ["operator.pairing"]
    );
}

#[test]
fn two_approvals_grant_only_what_both_cover_and_say_so() {
    let mut model = Model::default();
    model.ask(key(1), grant(&["operator"], &["operator.write"]));
    let approvals = [
        approval("a", 1, grant(&["operator"], &["operator.write"])),
        approval("b", 1, grant(&["operator"], &["operator.read"])),
    ];
    let plan = plan(&model, &approvals, Timestamp::UNIX_EPOCH);
    assert!(plan.actions.is_empty(), "operator.write is covered by one of them only");
    for name in ["a", "b"] {
        assert!(
            message(&plan, name, "Ready").starts_with("False Conflict: ns/"),
            "{}",
            message(&plan, name, "Ready")
        );
    }
}

#[test]
fn an_approval_that_ended_is_ready_and_revokes() {
    let mut model = Model::default();
    model.ask(key(1), grant(&["operator"], &[]));
    let mut input = approval("a", 1, grant(&["operator"], &[]));
    let approved = plan(&model, std::slice::from_ref(&input), Timestamp::UNIX_EPOCH);
    approved.actions.iter().for_each(|action| model.apply(action));
    if let Ok(spec) = &mut input.spec {
        spec.expires_at = Timestamp::from_second(10).ok();
    }
    let later = plan(
        &model,
        std::slice::from_ref(&input),
        Timestamp::from_second(9).expect("time"),
    );
    assert_eq!(
        (later.actions.len(), later.wake_at),
        (0, Timestamp::from_second(10).ok())
    );
    let ended = plan(&model, &[input], Timestamp::from_second(10).expect("time"));
    assert_eq!(
        verdicts(&ended).values().next(),
        Some(&(DeviceVerdict::Remove, Reason::Expired))
    );
    insta::assert_snapshot!(message(&ended, "a", "Ready"), @"True Expired: Ended at 1970-01-01T00:00:10Z; the device is revoked. Set a later spec.expiresAt to let it in again.");
}

#[test]
fn the_operators_own_device_is_never_touched() {
    let mut model = Model::default();
    model.ask(key(1), grant(&["operator"], &[]));
    let mut input = approval("a", 1, grant(&["operator"], &[]));
    if let Ok(spec) = &mut input.spec {
        spec.decision = Decision::Reject;
    }
    let own = key(1).device_id();
    let inputs = approvals::Inputs {
        approvals: &[input],
        devices: &model.devices,
        own_device: Some(own.as_str()),
        admit: true,
        now: Timestamp::UNIX_EPOCH,
    };
    let plan = approvals::plan(inputs);
    assert!(plan.actions.is_empty() && plan.devices.is_empty());
    assert!(message(&plan, "a", "Ready").starts_with("False OwnDevice"));
}

#[test]
fn a_deleted_approval_goes_when_its_device_has_gone() {
    let mut model = Model::default();
    model.ask(key(1), grant(&["operator"], &[]));
    let mut input = approval("a", 1, grant(&["operator"], &[]));
    let approved = plan(&model, std::slice::from_ref(&input), Timestamp::UNIX_EPOCH);
    approved.actions.iter().for_each(|action| model.apply(action));
    input.deleting = true;
    let revoking = plan(&model, std::slice::from_ref(&input), Timestamp::UNIX_EPOCH);
    assert_eq!(
        revoking.outcomes.first().map(|outcome| outcome.release),
        Some(None),
        "not before the device is gone"
    );
    revoking.actions.iter().for_each(|action| model.apply(action));
    let gone = plan(&model, std::slice::from_ref(&input), Timestamp::UNIX_EPOCH);
    assert_eq!(
        gone.outcomes.first().map(|outcome| outcome.release),
        Some(Some(Reason::Revoked))
    );
}

#[test]
fn an_empty_result_never_replaces_a_working_list_without_replace() {
    let key = ObjectKey::new("ns", "name");
    let config = GatewayConfig {
        trusted_proxies: Some(vec!["10.0.0.1".to_owned()]),
        ..GatewayConfig::default()
    };
    let owned = BTreeSet::from([Prefix::parse("10.0.0.1").expect("prefix")]);
    let mut reasons = Vec::new();
    for replace in [false, true] {
        let trust = trust_of(&[], replace);
        let discovery = discover(
            &Snapshot::none(),
            GatewayView {
                key: &key,
                trust: &trust,
            },
            &NamespacePolicy::default(),
        );
        let plan = trust::plan(trust::Inputs {
            trust: &trust,
            discovery: &discovery,
            config: Some(&config),
            owned: &owned,
        });
        reasons.push((
            plan.verdicts.last().map(|verdict| verdict.reason),
            plan.change.map(|change| change.patch.trusted_proxies),
        ));
    }
    assert_eq!(
        reasons,
        [
            (Some(Reason::EmptyResultKept), None),
            (Some(Reason::Applying), Some(vec![]))
        ]
    );
}

#[test]
fn existing_entries_stay_and_are_named() {
    let key = ObjectKey::new("ns", "name");
    let config = GatewayConfig {
        trusted_proxies: Some(vec!["192.168.1.0/24".to_owned(), "not-an-ip".to_owned()]),
        ..GatewayConfig::default()
    };
    let trust = trust_of(&["10.0.0.1".to_owned()], false);
    let discovery = discover(
        &Snapshot::none(),
        GatewayView {
            key: &key,
            trust: &trust,
        },
        &NamespacePolicy::default(),
    );
    let inputs = trust::Inputs {
        trust: &trust,
        discovery: &discovery,
        config: Some(&config),
        owned: &BTreeSet::new(),
    };
    let plan = trust::plan(inputs);
    assert_eq!(
        plan.change.map(|change| change.patch.trusted_proxies),
        Some(vec!["10.0.0.1/32".to_owned(), "192.168.1.0/24".to_owned()])
    );
    assert!(
        plan.withheld.iter().any(|entry| entry.reason == "NotAnAddress"),
        "the meaningless entry is named"
    );
}
