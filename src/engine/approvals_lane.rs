//! The approvals lane: list the devices, plan, call, read back. Waits for nothing that the other lane does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::front::Front;
use super::link::{Link, Up};
use super::{Desired, Note, NoteKind, Shared, Subject};
use crate::api::device_approval::DeletionPolicy;
use crate::api::gateway_trust::Mode;
use crate::api::validated::Grant;
use crate::api::{ObjectKey, Reason};
use crate::gateway::door::changed;
use crate::gateway::protocol::DeviceList;
use crate::gateway::{CallError, Connector, Door};
use crate::plan::approvals::{Action, ApprovalsPlan, DeviceVerdict, Inputs, plan};

/// The slow re-list behind the events: they are dropped for slow sockets, and a removal emits none.
const RELIST: Duration = Duration::from_secs(30);
/// Least time between lists that are made only because somebody came or went.
const PRESENCE_GAP: Duration = Duration::from_secs(1);
/// Wait after a failed call.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How often a plan is applied and made anew in one go before the lane takes a breath.
const ROUNDS: usize = 8;
/// How long a Service and its pods must have been gone before revoking is given up (`api.md`, invariant 12).
const GONE_FOR_GOOD: Duration = Duration::from_secs(60);

/// What this lane knows, for the reporter.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// What was desired when it was planned.
    pub desired: Arc<Desired>,
    /// The plan.
    pub plan: ApprovalsPlan,
    /// The pairing store that it was made from.
    pub devices: DeviceList,
    /// Another operator's device that was here first, by its display name.
    pub claimed_by: Option<String>,
    /// A call that failed.
    pub problem: Option<String>,
    /// Whether the gateway was asked: without it the pairing store is not known, and `devices` is empty.
    pub live: bool,
}

/// What was told already, so that each thing is told once.
#[derive(Default)]
struct Told(BTreeSet<(String, String, &'static str)>);

impl Told {
    /// Whether this is news. Forgets everything when too much has gathered: telling twice is no harm.
    fn is_news(&mut self, device: &str, request: Option<&str>, what: &'static str) -> bool {
        if self.0.len() > 4096 {
            self.0.clear();
        }
        self.0
            .insert((device.to_owned(), request.unwrap_or_default().to_owned(), what))
    }
}

pub(super) async fn run<F: Front, C: Connector>(shared: Arc<Shared<F, C>>) {
    let mut desired_changed = shared.desired.clone();
    let mut link_changed = shared.link.subscribe();
    let mut told = Told::default();
    loop {
        let desired = desired_changed.borrow_and_update().clone();
        let link = link_changed.borrow_and_update().clone();
        // Taken before the pass: what changes while it runs wakes the next one.
        let mut signals = link.up().map(|up| up.door.signals().from_now());
        let next = match &link {
            Link::Up(up) => pass(&shared, &desired, up, &mut told).await,
            Link::Again => RELIST,
            Link::Down { gone_since, .. } => without_gateway(&shared, &desired, *gone_since),
        };
        let (devices, presence) = signals
            .as_mut()
            .map(|signals| (&mut signals.devices, &mut signals.presence))
            .unzip();
        tokio::select! {
            news = desired_changed.changed() => if news.is_err() { return },
            news = link_changed.changed() => if news.is_err() { return },
            () = changed(devices) => {}
            () = async {
                // Who is connected is worth a look, but a list costs the gateway something: not at every coming and going.
                changed(presence).await;
                tokio::time::sleep(PRESENCE_GAP).await;
            } => {}
            () = tokio::time::sleep(next) => {}
        }
    }
}

/// No gateway: nothing can be revoked. Deleted approvals go only where it is gone for good.
fn without_gateway<F: Front, C: Connector>(
    shared: &Shared<F, C>,
    desired: &Arc<Desired>,
    gone_since: Option<Instant>,
) -> Duration {
    let gone = gone_since.is_some_and(|since| since.elapsed() >= GONE_FOR_GOOD);
    let namespace_ends = desired
        .snapshot
        .namespaces
        .get(&desired.key.namespace)
        .is_some_and(|namespace| namespace.terminating);
    let empty = DeviceList::default();
    let now = Timestamp::now();
    let mut plan = plan(Inputs {
        approvals: &desired.inputs(),
        devices: &empty,
        own_device: None,
        admit: false,
        now,
    });
    plan.actions.clear();
    for (outcome, approval) in plan.outcomes.iter_mut().zip(&desired.approvals) {
        let needs_gateway = approval
            .input
            .spec
            .as_ref()
            .is_ok_and(|spec| spec.deletion_policy == DeletionPolicy::Revoke);
        outcome.release = match (
            approval.input.deleting,
            approval.input.abandoned || gone || namespace_ends,
        ) {
            (true, true) => Some(Reason::Abandoned),
            (true, false) if !needs_gateway => outcome.release,
            _ => None,
        };
    }
    shared.approvals.send_replace(Some(Facts {
        desired: desired.clone(),
        plan,
        devices: empty,
        claimed_by: None,
        problem: None,
        live: false,
    }));
    if gone_since.is_some() && !gone {
        Duration::from_secs(5)
    } else {
        RELIST
    }
}

/// Another operator's device that was paired before ours. The names are made by [`Front::device_name`].
pub(super) fn claimed_by(devices: &DeviceList, desired: &Desired, own_device: &str, own_name: &str) -> Option<String> {
    let own_since = devices
        .paired
        .iter()
        .find(|record| record.device_id == own_device)
        .and_then(|record| record.approved_at);
    let other = devices.paired.iter().find(|record| {
        record.device_id != own_device
            && record.display_name.starts_with(DEVICE_NAME_PREFIX)
            // Any device can call itself so. One that cannot manage, or that Git names as a device, is no operator.
            && MANAGES.iter().all(|scope| record.holds.covers_scope(scope))
            && !desired.approvals.iter().any(|approval| {
                approval.input.spec.as_ref().is_ok_and(|spec| spec.device.as_str() == record.device_id)
            })
            // The same name under another key is this operator before it lost its key.
            && record.display_name != own_name
            && record.approved_at.zip(own_since).is_none_or(|(theirs, ours)| theirs <= ours)
    })?;
    Some(format!(
        "{:?} (device {})",
        other.display_name.chars().take(120).collect::<String>(),
        other.device_id.chars().take(12).collect::<String>()
    ))
}

/// What an operator's device holds.
const MANAGES: [&str; 2] = ["operator.admin", "operator.pairing"];

/// How the display name of every operator's device begins.
pub const DEVICE_NAME_PREFIX: &str = "gatewaytrust ";

async fn pass<F: Front, C: Connector>(
    shared: &Shared<F, C>,
    desired: &Arc<Desired>,
    up: &Up<C::Door>,
    told: &mut Told,
) -> Duration {
    let approvals = desired.inputs();
    let own = up.own_device.as_str();
    // A spec without meaning says nothing of any device: nothing is done, and nothing is let go.
    let Ok(spec) = &desired.spec else { return RELIST };
    let enforce = spec.mode == Mode::Enforce;
    for _ in 0..ROUNDS {
        if !is_current(shared, desired) {
            return Duration::ZERO;
        }
        let devices = match up.door.devices().await {
            Ok(devices) => devices,
            Err(error) => return failed(shared, desired, &error),
        };
        let now = Timestamp::now();
        let claimed_by = claimed_by(&devices, desired, own, &shared.front.device_name(&desired.key));
        let mut plan = plan(Inputs {
            approvals: &approvals,
            devices: &devices,
            own_device: Some(own),
            admit: !desired.deleting,
            now,
        });
        if !enforce || claimed_by.is_some() {
            // Nothing is written, so nothing would ever be revoked: a deletion must not hang on that.
            let reason = if enforce {
                Reason::GatewayClaimed
            } else {
                Reason::Observing
            };
            for (outcome, approval) in plan.outcomes.iter_mut().zip(&desired.approvals) {
                outcome.release = outcome.release.or(approval.input.deleting.then_some(reason));
            }
        }
        tell_news(shared, &plan, told);
        let until_expiry = plan
            .wake_at
            .map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        let actions = plan.actions.clone();
        let acts = enforce && claimed_by.is_none() && !actions.is_empty();
        shared.approvals.send_replace(Some(Facts {
            desired: desired.clone(),
            plan,
            devices,
            claimed_by,
            problem: None,
            live: true,
        }));
        if !acts {
            // A timer may fire a moment early; looking twice costs one list call. A clock that jumps is seen at the
            // next slow re-list at the latest.
            return until_expiry.map_or(RELIST, |wait| {
                wait.saturating_add(Duration::from_millis(20)).min(RELIST)
            });
        }
        if let Err(error) = apply(shared, desired, up, actions).await {
            return failed(shared, desired, &error);
        }
    }
    AFTER_FAILURE
}

/// Whether nothing else is desired meanwhile: an approval that has just been taken back must not be carried out.
fn is_current<F, C: Connector>(shared: &Shared<F, C>, desired: &Arc<Desired>) -> bool {
    Arc::ptr_eq(&shared.desired.borrow(), desired)
}

fn failed<F: Front, C: Connector>(shared: &Shared<F, C>, desired: &Arc<Desired>, error: &CallError) -> Duration {
    tracing::warn!(gateway = %desired.key, %error, "approvals: a call to the gateway failed");
    shared.approvals.send_modify(|facts| {
        // A gateway that never gave a list is a problem too, not one that was not looked at.
        let facts = facts.get_or_insert_with(|| Facts {
            desired: desired.clone(),
            plan: ApprovalsPlan::default(),
            devices: DeviceList::default(),
            claimed_by: None,
            problem: None,
            live: false,
        });
        facts.problem = Some(error.to_string());
    });
    match error {
        CallError::Limited { retry, .. } => (*retry).max(AFTER_FAILURE),
        _ => AFTER_FAILURE,
    }
}

async fn apply<F: Front, C: Connector>(
    shared: &Shared<F, C>,
    desired: &Arc<Desired>,
    up: &Up<C::Door>,
    actions: Vec<Action>,
) -> Result<(), CallError> {
    let mut granted: Vec<(String, Grant)> = Vec::new();
    let mut failure = None;
    for action in actions {
        if !is_current(shared, desired) {
            break;
        }
        let device = action.device_id().to_owned();
        let outcome = match &action {
            Action::Approve { request_id, .. } => up.door.approve(request_id).await,
            Action::Reject { request_id, .. } => up.door.reject(request_id).await,
            Action::Remove { device_id, .. } => up.door.remove(device_id).await,
        };
        match outcome {
            Ok(()) => {}
            // The request died or the device has gone meanwhile: the next list says what is so now.
            Err(CallError::Unknown(_)) => continue,
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
        let short: String = device.chars().take(12).collect();
        let (kind, reason, message) = match action {
            Action::Approve { at_most, .. } => {
                granted.push((device.clone(), at_most));
                (
                    NoteKind::Normal,
                    "DeviceApproved",
                    format!("Device {short} was approved: Git covers all that it asks for."),
                )
            }
            Action::Reject { reason, .. } => (
                NoteKind::Normal,
                "DeviceRejected",
                format!("The request of device {short} was rejected ({reason})."),
            ),
            Action::Remove { reason, .. } => (
                NoteKind::Normal,
                "DeviceRevoked",
                format!("Device {short} was removed from the gateway ({reason}); its connections were closed."),
            ),
        };
        tell(shared, desired, &device, kind, reason, message);
    }
    // Also after a failure: what was approved before it is read back all the same.
    read_back(shared, desired, up, granted).await?;
    failure.map_or(Ok(()), Err)
}

/// Invariant 2 of `api.md`: what the gateway really gave is read back, and a device that got more is removed at once.
async fn read_back<F: Front, C: Connector>(
    shared: &Shared<F, C>,
    desired: &Desired,
    up: &Up<C::Door>,
    granted: Vec<(String, Grant)>,
) -> Result<(), CallError> {
    if granted.is_empty() {
        return Ok(());
    }
    let devices = up.door.devices().await?;
    for (device, at_most) in granted {
        let Some(record) = devices.paired.iter().find(|record| record.device_id == device) else {
            continue;
        };
        let excess = at_most.excess_of(&record.holds);
        if !excess.is_empty() {
            match up.door.remove(&device).await {
                Ok(()) | Err(CallError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
            let message = format!(
                "The gateway gave device {} more than was approved ({}), so it was removed at once.",
                device.chars().take(12).collect::<String>(),
                excess.join(", ")
            );
            tell(
                shared,
                desired,
                &device,
                NoteKind::Warning,
                Reason::GrantExceeded.as_str(),
                message,
            );
        }
    }
    Ok(())
}

/// An event on the gateway's object, and on each approval that names the device.
fn tell<F: Front, C: Connector>(
    shared: &Shared<F, C>,
    desired: &Desired,
    device: &str,
    kind: NoteKind,
    reason: &'static str,
    message: String,
) {
    let naming = desired.approvals.iter().filter(|approval| {
        approval
            .input
            .spec
            .as_ref()
            .is_ok_and(|spec| spec.device.as_str() == device)
    });
    for approval in naming {
        shared.note(Note {
            subject: Subject::Approval(approval.input.key.clone()),
            kind,
            reason,
            message: message.clone(),
        });
    }
    shared.note(Note {
        subject: Subject::Gateway,
        kind,
        reason,
        message,
    });
}

/// Events for what waits: a new device, and one that is held.
fn tell_news<F: Front, C: Connector>(shared: &Shared<F, C>, plan: &ApprovalsPlan, told: &mut Told) {
    for device in &plan.devices {
        let Some(request) = device.request_id.as_deref() else {
            continue;
        };
        let short: String = device.device_id.chars().take(12).collect();
        match device.verdict {
            DeviceVerdict::Unmanaged if told.is_news(&device.device_id, Some(request), "requested") => shared.note(Note {
                subject: Subject::Gateway,
                kind: NoteKind::Warning,
                reason: "DeviceRequested",
                message: format!(
                    "Device {} asks to be paired as {}, and Git says nothing of it. To let it in, apply a DeviceApproval with this device id; to be rid of the request: openclaw devices reject {request}",
                    device.device_id, device.role
                ),
            }),
            DeviceVerdict::Hold if told.is_news(&device.device_id, Some(request), "held") => {
                let excess = if device.excess.is_empty() { String::new() } else { format!(": {}", device.excess.join(", ")) };
                let message = format!("The request of device {short} is held ({}){excess}.", device.reason);
                for key in &device.approvals {
                    held(shared, key, &message);
                }
                shared.note(Note { subject: Subject::Gateway, kind: NoteKind::Warning, reason: "DeviceHeld", message });
            }
            _ => {}
        }
    }
}

fn held<F: Front, C: Connector>(shared: &Shared<F, C>, key: &ObjectKey, message: &str) {
    shared.note(Note {
        subject: Subject::Approval(key.clone()),
        kind: NoteKind::Warning,
        reason: "DeviceHeld",
        message: message.to_owned(),
    });
}
