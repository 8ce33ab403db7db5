//! What each approval's status says of the plan, in words that tell what to do next. Pure.

use std::collections::BTreeMap;

use super::approvals::{ApprovalInput, ApprovalOutcome, Claim, DeviceDecision, DeviceVerdict, Inputs, in_force};
use crate::api::Reason;
use crate::api::condition::{ConditionType, Truth, Verdict};
use crate::api::device_approval::{Decision, DeletionPolicy};
use crate::api::validated::{Grant, ValidatedApproval};
use crate::gateway::protocol::{PairedRecord, PendingRecord};

fn list(grant: &Grant) -> String {
    let scopes: Vec<&str> = grant.scopes.iter().map(String::as_str).collect();
    if scopes.is_empty() {
        "no scopes".to_owned()
    } else {
        scopes.join(", ")
    }
}

/// What the status of one approval says.
pub(super) fn outcome(
    inputs: &Inputs<'_>,
    input: &ApprovalInput,
    claims: &BTreeMap<&str, Vec<Claim<'_>>>,
    decided: &BTreeMap<&str, DeviceDecision>,
    pending: &BTreeMap<&str, &PendingRecord>,
    paired: &BTreeMap<&str, &PairedRecord>,
) -> ApprovalOutcome {
    let mut outcome = ApprovalOutcome {
        key: input.key.clone(),
        device_id: None,
        request_id: None,
        paired: None,
        verdicts: Vec::new(),
        release: None,
    };
    let approval = match &input.spec {
        Ok(approval) => approval,
        Err(error) => {
            outcome.verdicts = vec![
                Verdict::new(ConditionType::Ready, false, Reason::InvalidSpec, error.to_string()),
                Verdict::new(
                    ConditionType::Approved,
                    false,
                    Reason::InvalidSpec,
                    "Nothing is approved by an invalid spec.",
                ),
            ];
            outcome.release = input.deleting.then_some(Reason::InvalidSpec);
            return outcome;
        }
    };
    let id = approval.device.as_str();
    outcome.device_id = Some(approval.device.clone());
    if Some(id) == inputs.own_device {
        outcome.verdicts = vec![Verdict::new(
            ConditionType::Ready,
            false,
            Reason::OwnDevice,
            "This is the operator's own device; no approval governs it. Delete this object.",
        )];
        outcome.release = input.deleting.then_some(Reason::OwnDevice);
        return outcome;
    }
    let pending = pending.get(id).copied();
    let paired = paired.get(id).copied();
    outcome.request_id = pending.map(|record| record.request_id.clone());
    outcome.paired = paired.cloned();
    let all = claims.get(id).map(Vec::as_slice).unwrap_or_default();
    let others: Vec<&Claim<'_>> = in_force(inputs, all)
        .into_iter()
        .filter(|claim| claim.key != &input.key)
        .collect();
    if input.deleting {
        outcome.release = release(input, approval, &others, paired.is_some());
    }
    let decision = decided.get(id);
    outcome.verdicts = vec![
        ready(inputs, input, approval, &others),
        approved(approval, decision, pending, paired),
        Verdict::new(
            ConditionType::Connected,
            paired.is_some_and(|record| record.connected),
            if paired.is_some_and(|record| record.connected) {
                Reason::Connected
            } else {
                Reason::Disconnected
            },
            if paired.is_some_and(|record| record.connected) {
                "The device has an open connection."
            } else {
                "The device has no open connection."
            },
        ),
    ];
    outcome
}

/// Whether another approval answers for the device from now on: its own going would be noticed.
fn takes_over(other: &&Claim<'_>) -> bool {
    other.input.guarded && other.approval.decision == Decision::Approve
}

/// Whether a deleted approval may go.
fn release(input: &ApprovalInput, approval: &ValidatedApproval, others: &[&Claim<'_>], paired: bool) -> Option<Reason> {
    if input.abandoned {
        Some(Reason::Abandoned)
    } else if approval.deletion_policy == DeletionPolicy::Retain {
        Some(Reason::Retained)
    } else if !paired || others.iter().any(takes_over) {
        // Gone already, or another approval takes the device over.
        Some(Reason::Revoked)
    } else {
        None
    }
}

fn ready(inputs: &Inputs<'_>, input: &ApprovalInput, approval: &ValidatedApproval, others: &[&Claim<'_>]) -> Verdict {
    let differing: Vec<String> = others
        .iter()
        .filter(|other| other.approval.decision != approval.decision || other.approval.grant != approval.grant)
        .map(|other| other.key.to_string())
        .collect();
    let (truth, reason, message) = if input.deleting {
        (
            false,
            Reason::Deleting,
            "Being deleted: the device is revoked first.".to_owned(),
        )
    } else if approval.is_expired(inputs.now) {
        let end = approval.expires_at.map(|end| end.to_string()).unwrap_or_default();
        (
            true,
            Reason::Expired,
            format!("Ended at {end}; the device is revoked. Set a later spec.expiresAt to let it in again."),
        )
    } else if !differing.is_empty() {
        (
            false,
            Reason::Conflict,
            format!(
                "{} also names this device and differs. Reject beats Approve; else only what all cover is granted. Delete all but one.",
                differing.join(", ")
            ),
        )
    } else if !input.guarded {
        (
            false,
            Reason::Pending,
            "Taking note of this approval, so that deleting it will revoke the device.".to_owned(),
        )
    } else if approval.decision == Decision::Reject {
        (true, Reason::InForce, "In force: the device is refused.".to_owned())
    } else {
        (true, Reason::InForce, "In force.".to_owned())
    };
    Verdict::new(ConditionType::Ready, truth, reason, message)
}

fn approved(
    approval: &ValidatedApproval,
    decision: Option<&DeviceDecision>,
    pending: Option<&PendingRecord>,
    paired: Option<&PairedRecord>,
) -> Verdict {
    let Some(decision) = decision else {
        return Verdict::new(
            ConditionType::Approved,
            Truth::Unknown,
            Reason::Pending,
            "Not looked at yet.",
        );
    };
    let excess = decision.excess.join(", ");
    let (truth, message) = match (decision.verdict, decision.reason) {
        (DeviceVerdict::Keep, _) => (
            true,
            format!(
                "The device holds: {}.",
                paired.map(|record| list(&record.holds)).unwrap_or_default()
            ),
        ),
        (DeviceVerdict::Approve, _) => (false, "The request is covered and is being approved.".to_owned()),
        (DeviceVerdict::Hold, Reason::AsksForMore) => (
            false,
            format!(
                "Held: the device asks for more than this approves: {excess}. It asks for {}; approved are {}. Add what it should have to spec.scopes or spec.roles, or have it ask for less and reject the old request: openclaw devices reject {}",
                pending.map(|record| list(&record.asked)).unwrap_or_default(),
                list(&approval.grant),
                decision.request_id.as_deref().unwrap_or_default()
            ),
        ),
        (DeviceVerdict::Hold, Reason::KeyMismatch) => (
            false,
            "Held: the device shows another public key than spec.device says. Compare with: openclaw devices list"
                .to_owned(),
        ),
        (DeviceVerdict::Hold, reason) => (false, format!("Held ({reason}): the request waits.")),
        (DeviceVerdict::Reject, _) => (
            false,
            "The device's request is being rejected, as spec.decision says.".to_owned(),
        ),
        (DeviceVerdict::Remove, Reason::Narrowed) => (
            false,
            format!("The device holds more than this approves ({excess}); it is removed and may pair again for less."),
        ),
        (DeviceVerdict::Remove, reason) => (false, format!("The device is being removed ({reason}).")),
        (DeviceVerdict::Wait, Reason::WaitingForDevice) => (
            false,
            "The device has not asked to be paired yet; it will be approved when it does.".to_owned(),
        ),
        (DeviceVerdict::Wait, Reason::Pending) => (false, "Taking note of this approval first.".to_owned()),
        (DeviceVerdict::Wait, reason) => (false, format!("The device is not paired ({reason}).")),
        (DeviceVerdict::Unmanaged, _) => (false, "Nothing is approved.".to_owned()),
    };
    Verdict::new(ConditionType::Approved, truth, decision.reason, message)
}
