//! What the gateway's pairing store should be, and the calls that make it so. Pure.
//!
//! What counts is what a device would hold *afterwards*: the gateway unites the old grant with what is pending
//! (measured), so the union is held against what Git approves, never the request alone. On doubt nothing is approved.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::api::condition::{ConditionType, Verdict};
use crate::api::device_approval::{Decision, DeletionPolicy};
use crate::api::validated::{Grant, SpecError, ValidatedApproval};
use crate::api::{DeviceId, ObjectKey, PublicKey, Reason};
use crate::gateway::protocol::{DeviceList, PairedRecord, PendingRecord};
use crate::plan::outcomes;
use crate::plan::trust::count;

/// One approval, as a front hands it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalInput {
    /// Its name.
    pub key: ObjectKey,
    /// Its spec, or why that has no meaning.
    pub spec: Result<ValidatedApproval, SpecError>,
    /// Whether it is being deleted (or has left the folder).
    pub deleting: bool,
    /// Whether its deletion would be noticed whatever happens: the finalizer is on it, or the record is on disk.
    /// Nothing is approved before.
    pub guarded: bool,
    /// Whether revoking is given up.
    pub abandoned: bool,
}

/// What is done about one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum DeviceVerdict {
    /// A pending request is covered.
    Approve,
    /// It asks for more than was approved, or a conflict stands in the way.
    Hold,
    /// A pending request is refused.
    Reject,
    /// A paired device is revoked.
    Remove,
    /// Approved in Git, has not come.
    Wait,
    /// Paired as approved.
    Keep,
    /// Git says nothing of it.
    Unmanaged,
}

impl DeviceVerdict {
    /// As `plan -o json` spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "Approve",
            Self::Hold => "Hold",
            Self::Reject => "Reject",
            Self::Remove => "Remove",
            Self::Wait => "Wait",
            Self::Keep => "Keep",
            Self::Unmanaged => "Unmanaged",
        }
    }
}

/// What is done about one device, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDecision {
    /// The device.
    pub device_id: String,
    /// Its request, if one waits.
    pub request_id: Option<String>,
    /// What it asks to be, or is.
    pub role: String,
    /// What is done.
    pub verdict: DeviceVerdict,
    /// Why.
    pub reason: Reason,
    /// What it asks for beyond the approval.
    pub excess: Vec<String>,
    /// The approvals that decide it.
    pub approvals: Vec<ObjectKey>,
}

/// One call to the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Approve a request. The grant is what the device may hold at most when it is read back.
    Approve {
        /// The request.
        request_id: String,
        /// Its device.
        device_id: String,
        /// The ceiling.
        at_most: Grant,
    },
    /// Reject a request.
    Reject {
        /// The request.
        request_id: String,
        /// Its device.
        device_id: String,
        /// Why.
        reason: Reason,
    },
    /// Remove a paired device; its sockets close.
    Remove {
        /// The device.
        device_id: String,
        /// Why.
        reason: Reason,
    },
}

impl Action {
    /// The device that it is about.
    pub fn device_id(&self) -> &str {
        match self {
            Self::Approve { device_id, .. } | Self::Reject { device_id, .. } | Self::Remove { device_id, .. } => {
                device_id
            }
        }
    }
}

/// What one approval's status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalOutcome {
    /// The approval.
    pub key: ObjectKey,
    /// Its device, where the spec has a meaning.
    pub device_id: Option<DeviceId>,
    /// The request that waits.
    pub request_id: Option<String>,
    /// The paired record.
    pub paired: Option<PairedRecord>,
    /// `Ready`, `Approved`, `Connected`.
    pub verdicts: Vec<Verdict>,
    /// For one that is being deleted: whether nothing is left to be done, and why.
    pub release: Option<Reason>,
}

/// The plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApprovalsPlan {
    /// Every device of the gateway but the operator's own, in order.
    pub devices: Vec<DeviceDecision>,
    /// The calls, in the order in which they are made.
    pub actions: Vec<Action>,
    /// What each approval's status says.
    pub outcomes: Vec<ApprovalOutcome>,
    /// When to look again: the next expiry.
    pub wake_at: Option<Timestamp>,
}

/// What the plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Every approval that refers to this gateway.
    pub approvals: &'a [ApprovalInput],
    /// The pairing store.
    pub devices: &'a DeviceList,
    /// The operator's own device, which is never touched.
    pub own_device: Option<&'a str>,
    /// Whether new devices may be let in (not while the `GatewayTrust` is being deleted).
    pub admit: bool,
    /// The time.
    pub now: Timestamp,
}

/// What all the approvals of one device say together.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Will {
    /// Let it hold this much; but approve nothing before the going of every approval would be noticed.
    Grant { grant: Grant, guarded: bool },
    /// Refuse and revoke.
    Refuse(Reason),
    /// Nobody says anything.
    Silent,
}

/// One approval's claim on a device.
pub(super) struct Claim<'a> {
    pub(super) key: &'a ObjectKey,
    pub(super) approval: &'a ValidatedApproval,
    pub(super) input: &'a ApprovalInput,
}

/// Plans the pairing store.
pub fn plan(inputs: Inputs<'_>) -> ApprovalsPlan {
    let mut claims: BTreeMap<&str, Vec<Claim<'_>>> = BTreeMap::new();
    for input in inputs.approvals {
        if let Ok(approval) = &input.spec {
            claims.entry(approval.device.as_str()).or_default().push(Claim {
                key: &input.key,
                approval,
                input,
            });
        }
    }
    let pending: BTreeMap<&str, &PendingRecord> = inputs
        .devices
        .pending
        .iter()
        .map(|record| (record.device_id.as_str(), record))
        .collect();
    let paired: BTreeMap<&str, &PairedRecord> = inputs
        .devices
        .paired
        .iter()
        .map(|record| (record.device_id.as_str(), record))
        .collect();
    let ids: BTreeSet<&str> = claims
        .keys()
        .chain(pending.keys())
        .chain(paired.keys())
        .copied()
        .collect();

    let mut plan = ApprovalsPlan::default();
    let mut decided: BTreeMap<&str, DeviceDecision> = BTreeMap::new();
    for id in ids {
        if Some(id) == inputs.own_device {
            continue;
        }
        let claims = claims.get(id).map(Vec::as_slice).unwrap_or_default();
        let (decision, actions) = decide(&inputs, id, claims, pending.get(id).copied(), paired.get(id).copied());
        plan.actions.extend(actions);
        decided.insert(id, decision);
    }
    for input in inputs.approvals {
        plan.outcomes
            .push(outcomes::outcome(&inputs, input, &claims, &decided, &pending, &paired));
    }
    plan.devices = decided
        .into_values()
        .filter(|device| !(device.verdict == DeviceVerdict::Wait && device.approvals.is_empty()))
        .collect();
    let expiries = claims
        .values()
        .flatten()
        .filter_map(|claim| claim.approval.expires_at)
        .filter(|end| *end > inputs.now);
    plan.wake_at = expiries.min();
    plan
}

pub(super) fn in_force<'a, 'b>(inputs: &Inputs<'_>, claims: &'b [Claim<'a>]) -> Vec<&'b Claim<'a>> {
    claims
        .iter()
        .filter(|claim| !claim.input.deleting && !claim.approval.is_expired(inputs.now))
        .collect()
}

/// `Reject` beats `Approve`; else only what all cover is granted. Never the union, never by age.
fn will(inputs: &Inputs<'_>, claims: &[Claim<'_>]) -> Will {
    let in_force = in_force(inputs, claims);
    if in_force.iter().any(|claim| claim.approval.decision == Decision::Reject) {
        return Will::Refuse(Reason::Rejected);
    }
    if let Some((first, rest)) = in_force.split_first() {
        let guarded = in_force.iter().all(|claim| claim.input.guarded);
        let grant = rest.iter().fold(first.approval.grant.clone(), |grant, claim| {
            grant.intersection(&claim.approval.grant)
        });
        return Will::Grant { grant, guarded };
    }
    if claims.iter().any(|claim| {
        claim.input.deleting && !claim.input.abandoned && claim.approval.deletion_policy == DeletionPolicy::Revoke
    }) {
        return Will::Refuse(Reason::Revoked);
    }
    if claims.iter().any(|claim| {
        !claim.input.deleting && claim.approval.is_expired(inputs.now) && claim.approval.decision == Decision::Approve
    }) {
        return Will::Refuse(Reason::Expired);
    }
    Will::Silent
}

fn decide(
    inputs: &Inputs<'_>,
    id: &str,
    claims: &[Claim<'_>],
    pending: Option<&PendingRecord>,
    paired: Option<&PairedRecord>,
) -> (DeviceDecision, Vec<Action>) {
    let role = pending
        .map(|record| &record.asked)
        .or(paired.map(|record| &record.holds))
        .map(|grant| grant.roles.iter().cloned().collect::<Vec<_>>().join(","))
        .unwrap_or_default();
    let mut decision = DeviceDecision {
        device_id: id.to_owned(),
        request_id: pending.map(|record| record.request_id.clone()),
        role,
        verdict: DeviceVerdict::Unmanaged,
        reason: Reason::NoApproval,
        excess: Vec::new(),
        approvals: claims.iter().map(|claim| claim.key.clone()).collect(),
    };
    let mut actions = Vec::new();
    let mut say = |verdict, reason| {
        decision.verdict = verdict;
        decision.reason = reason;
    };
    match will(inputs, claims) {
        Will::Silent => {}

        Will::Refuse(reason) => {
            // A pending request is rejected only where Git says so: an approval that merely ended says nothing of
            // a new request, which then waits like any other.
            if let (Some(record), Reason::Rejected) = (pending, reason) {
                say(DeviceVerdict::Reject, reason);
                actions.push(Action::Reject {
                    request_id: record.request_id.clone(),
                    device_id: id.to_owned(),
                    reason,
                });
            } else if pending.is_some() {
                say(DeviceVerdict::Hold, reason);
            } else {
                say(DeviceVerdict::Wait, reason);
            }
            if paired.is_some() {
                say(DeviceVerdict::Remove, reason);
                actions.push(Action::Remove {
                    device_id: id.to_owned(),
                    reason,
                });
            }
        }
        Will::Grant { grant, guarded } => {
            let key_differs = |key: &str| wrong_key(id, claims, key);
            let too_much = paired.map(|record| grant.excess_of(&record.holds)).unwrap_or_default();
            if let Some(record) = paired
                && key_differs(&record.public_key)
            {
                say(DeviceVerdict::Remove, Reason::KeyMismatch);
                actions.push(Action::Remove {
                    device_id: record.device_id.clone(),
                    reason: Reason::KeyMismatch,
                });
            } else if !too_much.is_empty() {
                // There is no way to grant less: it goes, and may pair again for what is approved.
                say(DeviceVerdict::Remove, Reason::Narrowed);
                decision.excess = too_much;
                actions.push(Action::Remove {
                    device_id: id.to_owned(),
                    reason: Reason::Narrowed,
                });
                // What it asks for now may be covered by itself, once the old grant is gone.
                if let Some(record) = pending
                    && inputs.admit
                    && guarded
                    && !key_differs(&record.public_key)
                    && grant.excess_of(&record.asked).is_empty()
                {
                    let request_id = record.request_id.clone();
                    actions.push(Action::Approve {
                        request_id,
                        device_id: id.to_owned(),
                        at_most: grant,
                    });
                }
            } else if let Some(record) = pending {
                let held = paired.map(|record| record.holds.clone()).unwrap_or_default();
                let excess = grant.excess_of(&held.union(&record.asked));
                if key_differs(&record.public_key) {
                    say(DeviceVerdict::Hold, Reason::KeyMismatch);
                } else if !excess.is_empty() {
                    say(DeviceVerdict::Hold, Reason::AsksForMore);
                    decision.excess = excess;
                } else if !guarded {
                    say(DeviceVerdict::Wait, Reason::Pending);
                } else if !inputs.admit {
                    say(DeviceVerdict::Hold, Reason::Deleting);
                } else {
                    say(DeviceVerdict::Approve, Reason::Covered);
                    actions.push(Action::Approve {
                        request_id: record.request_id.clone(),
                        device_id: id.to_owned(),
                        at_most: grant,
                    });
                }
            } else if paired.is_some() {
                say(DeviceVerdict::Keep, Reason::Granted);
            } else {
                say(DeviceVerdict::Wait, Reason::WaitingForDevice);
            }
        }
    }
    (decision, actions)
}

/// Whether a key does not belong to this id, or is not the one that an approval names.
fn wrong_key(id: &str, claims: &[Claim<'_>], shown: &str) -> bool {
    match PublicKey::parse(shown) {
        Err(_) => true,
        Ok(key) => {
            key.device_id().as_str() != id
                || claims
                    .iter()
                    .any(|claim| claim.approval.key.is_some_and(|named| named != key))
        }
    }
}

/// `ApprovalsEnforced` for the `GatewayTrust`.
pub fn enforced(plan: &ApprovalsPlan, enforce: bool) -> Verdict {
    let held = plan
        .devices
        .iter()
        .filter(|device| device.verdict == DeviceVerdict::Hold)
        .count();
    let waiting = plan
        .devices
        .iter()
        .filter(|device| device.request_id.is_some() && device.verdict == DeviceVerdict::Unmanaged)
        .count();
    let invalid = plan
        .outcomes
        .iter()
        .filter(|outcome| {
            outcome
                .verdicts
                .iter()
                .any(|verdict| verdict.reason == Reason::InvalidSpec)
        })
        .count();
    if !plan.actions.is_empty() && !enforce {
        return Verdict::new(
            ConditionType::ApprovalsEnforced,
            false,
            Reason::Observing,
            format!(
                "mode: Observe. Enforce would make {}.",
                count(plan.actions.len(), "change", "changes")
            ),
        );
    }
    let mut parts = vec![count(plan.outcomes.len(), "approval", "approvals")];
    for (number, what) in [
        (held, "held (asks for more than was approved)"),
        (waiting, "waiting without an approval"),
        (invalid, "invalid"),
    ] {
        if number > 0 {
            parts.push(format!("{number} {what}"));
        }
    }
    Verdict::new(
        ConditionType::ApprovalsEnforced,
        true,
        Reason::AsDeclared,
        format!("{}.", parts.join(", ")),
    )
}
