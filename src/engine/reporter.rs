//! The reporter: publishes statuses and events, and lets deleted approvals go. Nothing waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::front::{DesiredApproval, Front};
use super::link::Link;
use super::report::{Sources, approval_status, trust_status};
use super::{Desired, Note, Shared};
use crate::api::gateway_trust::GatewayTrustStatus;
use crate::api::{DeviceApprovalStatus, ObjectKey, Reason};
use crate::gateway::{Connector, Door};

/// Changes that come together are published together.
const SETTLE: Duration = Duration::from_millis(40);
/// A connection that is lost for less than this is not reported: the gateway closes everybody at a policy change.
const BLINK: Duration = Duration::from_secs(3);
/// Wait before a publication that failed is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// What was published last.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// The gateway's status; none before the first.
    pub trust: Option<GatewayTrustStatus>,
    /// Each approval's.
    pub approvals: BTreeMap<ObjectKey, DeviceApprovalStatus>,
    /// The uid of the object that each was published for.
    uids: BTreeMap<ObjectKey, Option<String>>,
    /// Whether the approvals were looked at on a live connection, and nothing was left to do.
    pub settled: bool,
    /// Whether there is a final answer for now: settled, or no connection for a stated reason.
    pub answered: bool,
}

pub(super) async fn run<F: Front, C: Connector>(
    shared: Arc<Shared<F, C>>,
    mut notes: mpsc::Receiver<Note>,
    published: watch::Sender<Published>,
) {
    let mut desired_changed = shared.desired.clone();
    let mut link_changed = shared.link.subscribe();
    let mut trust_changed = shared.trust.subscribe();
    let mut approvals_changed = shared.approvals.subscribe();
    let key = shared.desired().key.clone();
    let mut known = Published {
        trust: shared.front.previous_status(&key),
        ..Published::default()
    };
    let mut released = Released::new();
    let mut broken_since: Option<Instant> = None;
    loop {
        let mut wait = Duration::from_secs(3600);
        let desired = desired_changed.borrow_and_update().clone();
        let link = link_changed.borrow_and_update().clone();
        let trust = trust_changed.borrow_and_update().clone();
        let approvals = approvals_changed.borrow_and_update().clone();
        // What there was before is still true during a blink; where there was nothing, say at once what is going on.
        let blink = matches!(link, Link::Again) && known.trust.is_some();
        broken_since = if blink {
            broken_since.or_else(|| Some(Instant::now()))
        } else {
            None
        };
        match broken_since.map(|since| BLINK.saturating_sub(since.elapsed())) {
            Some(left) if !left.is_zero() => wait = left,
            _ => {
                let sources = Sources {
                    desired: &desired,
                    link: &link,
                    version: link.up().map(|up| up.door.version()),
                    trust: trust.as_ref().filter(|facts| facts.live || link.up().is_none()),
                    approvals: approvals.as_ref(),
                    now: Timestamp::now(),
                };
                if publish(&shared, &sources, &mut known, &mut released).await.is_err() {
                    wait = AFTER_FAILURE;
                }
                published.send_replace(known.clone());
            }
        }
        tokio::select! {
            changed = desired_changed.changed() => if changed.is_err() { return },
            changed = link_changed.changed() => if changed.is_err() { return },
            changed = trust_changed.changed() => if changed.is_err() { return },
            changed = approvals_changed.changed() => if changed.is_err() { return },
            note = notes.recv() => match note {
                None => return,
                Some(note) => { shared.front.tell(&key, note).await; continue }
            },
            () = tokio::time::sleep(wait) => {}
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Publishes what differs from what was published last.
async fn publish<F: Front, C: Connector>(
    shared: &Shared<F, C>,
    sources: &Sources<'_, C::Door>,
    known: &mut Published,
    released: &mut Released,
) -> Result<(), ()> {
    let desired: &Desired = sources.desired;
    let mut ok = true;
    let previous = known.trust.clone().unwrap_or_default();
    let status = trust_status(sources, &previous);
    if known.trust.as_ref() != Some(&status) {
        match shared.front.publish(&desired.key, &status).await {
            Ok(()) => known.trust = Some(status),
            Err(error) => {
                tracing::warn!(gateway = %desired.key, %error, "the status could not be written");
                ok = false;
            }
        }
    }
    known.settled = matches!(sources.link, Link::Up(_))
        && sources
            .trust
            .is_some_and(|facts| facts.live && (facts.plan.change.is_none() || !facts.plan.enforce));
    let mut answered = known.settled;
    if let Some(facts) = sources
        .approvals
        .filter(|facts| facts.live || matches!(sources.link, Link::Down { .. }))
    {
        known.settled &= facts.plan.actions.is_empty() && facts.problem.is_none();
        answered &= known.settled || facts.claimed_by.is_some();
        for (outcome, planned) in facts.plan.outcomes.iter().zip(&facts.desired.approvals) {
            // The plan may be of a moment ago: what has gone or was made anew since then is for the next one.
            let Some(now) = desired.same(planned) else { continue };
            if let Some(reason) = outcome.release {
                if now.input.deleting {
                    ok &= release(shared, desired, now, reason, released).await;
                }
                continue;
            }
            if known.uids.insert(outcome.key.clone(), now.uid.clone()) != Some(now.uid.clone()) {
                known.approvals.remove(&outcome.key);
            }
            let previous = match known.approvals.get(&outcome.key) {
                Some(status) => status.clone(),
                None => shared.front.previous_approval_status(&outcome.key).unwrap_or_default(),
            };
            let status = approval_status(sources, outcome, planned.generation, &previous);
            if is_orphaned(&shared.front.previous_approval_status(&outcome.key)) {
                // Written for a moment without a gateway, after what this worker wrote.
                known.approvals.remove(&outcome.key);
            }
            if known.approvals.get(&outcome.key) != Some(&status) {
                if (status != previous || is_orphaned(&shared.front.previous_approval_status(&outcome.key)))
                    && let Err(error) = shared.front.publish_approval(&desired.key, &outcome.key, &status).await
                {
                    tracing::warn!(approval = %outcome.key, %error, "the status could not be written");
                    ok = false;
                    continue;
                }
                known.approvals.insert(outcome.key.clone(), status);
            }
        }
        let planned: BTreeSet<&ObjectKey> = facts.plan.outcomes.iter().map(|outcome| &outcome.key).collect();
        known.settled &= desired
            .approvals
            .iter()
            .all(|approval| planned.contains(&approval.input.key));
        answered &= known.settled || facts.claimed_by.is_some();
    } else {
        known.settled = false;
        answered = false;
    }
    known.answered = answered || matches!(sources.link, Link::Down { .. });
    known
        .approvals
        .retain(|key, _| desired.approvals.iter().any(|approval| approval.input.key == *key));
    released.retain(|(key, uid)| {
        let mut approvals = desired.approvals.iter();
        approvals.any(|approval| approval.input.key == *key && approval.uid == *uid && approval.input.deleting)
    });
    if ok { Ok(()) } else { Err(()) }
}

fn is_orphaned(status: &Option<DeviceApprovalStatus>) -> bool {
    let conditions = status.iter().flat_map(|status| &status.conditions);
    conditions
        .into_iter()
        .any(|condition| condition.reason == Reason::GatewayTrustNotFound.as_str())
}

/// Objects that were let go already.
type Released = BTreeSet<(ObjectKey, Option<String>)>;

async fn release<F: Front, C: Connector>(
    shared: &Shared<F, C>,
    desired: &Desired,
    approval: &DesiredApproval,
    reason: Reason,
    released: &mut Released,
) -> bool {
    let key = &approval.input.key;
    let object = (key.clone(), approval.uid.clone());
    if released.contains(&object) {
        return true;
    }
    match shared.front.release(&desired.key, key, reason).await {
        Ok(()) => {
            tracing::info!(gateway = %desired.key, approval = %key, %reason, "the deleted approval may go");
            released.insert(object);
            true
        }
        Err(error) => {
            tracing::warn!(approval = %key, %error, "the deleted approval could not be let go yet");
            false
        }
    }
}
