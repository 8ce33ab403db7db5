//! The trust lane: read the config, plan, write at most once, read back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::time::Instant;

use super::approvals_lane::claimed_by;
use super::front::{Front, Record};
use super::link::Up;
use super::{Desired, Note, NoteKind, Shared, Subject};
use crate::api::Reason;
use crate::api::condition::{ConditionType, Verdict};
use crate::api::gateway_trust::PolicyChanges;
use crate::cidr::{as_the_gateway_reads, same_addresses};
use crate::discovery::{Discovery, GatewayView, discover};
use crate::gateway::door::changed;
use crate::gateway::protocol::GatewayConfig;
use crate::gateway::{CallError, Connector, Door};
use crate::plan::trust::{Change, Inputs, TrustPlan, plan};

/// How often the config is read again behind its events.
const REREAD: Duration = Duration::from_secs(60);
/// Wait after a failed call, or before the front is asked again.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
/// How often a stale revision is read again in one go.
const STALE_TRIES: usize = 4;
/// How often the same list is written again after somebody else put back theirs, before they are left to it.
const REVERTS: usize = 3;
/// Within this time.
const REVERT_SPAN: Duration = Duration::from_secs(3600);

/// What this lane knows, for the reporter.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// The generation of the spec that it was planned for.
    pub generation: Option<i64>,
    /// The plan.
    pub plan: TrustPlan,
    /// Whether the admin RPC plugin is on, where the config is known.
    pub admin_rpc: bool,
    /// Writes so far.
    pub changes: PolicyChanges,
    /// Whether the gateway's config was read for this plan.
    pub live: bool,
}

/// What was written last, and how often somebody else has taken that back.
#[derive(Default)]
struct Writes {
    last: Option<Vec<IpNet>>,
    reverts: Vec<Instant>,
}

impl Writes {
    fn meaning(entries: &[String]) -> Vec<IpNet> {
        same_addresses(entries.iter().filter_map(|text| as_the_gateway_reads(text)))
    }

    fn note(&mut self, entries: &[String]) {
        self.last = Some(Self::meaning(entries));
    }

    /// Notes the list that is there before a write; whether it was put there by somebody else too often.
    fn is_fought_over(&mut self, found: &[String]) -> bool {
        if self.last.as_ref().is_some_and(|last| *last != Self::meaning(found)) {
            self.last = None;
            self.reverts.push(Instant::now());
        }
        self.reverts.retain(|at| at.elapsed() < REVERT_SPAN);
        self.reverts.len() >= REVERTS
    }
}

/// What is known of the gateway's config.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It was read just now.
    Now,
    /// There is no connection: what was known before is still the best that is known.
    Before,
    /// A call failed, and that is what has to be said.
    Failed,
}

struct Lane<'a, F, C: Connector> {
    shared: &'a Shared<F, C>,
    changes: PolicyChanges,
    writes: Writes,
    record: Option<Record>,
    last_plan: Option<TrustPlan>,
    /// The gateway limits its writes, or refused one: none before this, whatever wakes the lane.
    not_before: Option<Instant>,
}

pub(super) async fn run<F: Front, C: Connector>(shared: Arc<Shared<F, C>>) {
    let mut desired_changed = shared.desired.clone();
    let mut link_changed = shared.link.subscribe();
    let key = shared.desired().key.clone();
    let changes = shared
        .front
        .previous_status(&key)
        .and_then(|status| status.policy_changes)
        .unwrap_or_default();
    let mut lane = Lane {
        shared: &shared,
        changes,
        writes: Writes::default(),
        record: None,
        last_plan: None,
        not_before: None,
    };
    let mut spec = shared.desired().spec.clone();
    loop {
        let desired = desired_changed.borrow_and_update().clone();
        if spec != desired.spec {
            // A person has changed the spec: what was given up is tried again.
            spec.clone_from(&desired.spec);
            lane.writes = Writes::default();
            lane.not_before = None;
        }
        let link = link_changed.borrow_and_update().clone();
        // Taken before the pass: what changes while it runs wakes the next one.
        let mut signals = link.up().map(|up| up.door.signals().from_now());
        let next = lane.pass(&desired, link.up()).await;
        tokio::select! {
            news = desired_changed.changed() => if news.is_err() { return },
            news = link_changed.changed() => if news.is_err() { return },
            () = changed(signals.as_mut().map(|signals| &mut signals.config)) => {}
            () = tokio::time::sleep(next) => {}
        }
    }
}

impl<F: Front, C: Connector> Lane<'_, F, C> {
    async fn pass(&mut self, desired: &Desired, up: Option<&Up<C::Door>>) -> Duration {
        let Ok(trust) = &desired.spec else { return REREAD };
        if self.record.is_none() {
            match self.shared.front.record(&desired.key).await {
                Ok(record) => self.record = Some(record),
                Err(error) => {
                    tracing::warn!(gateway = %desired.key, %error, "what was written before is not known yet, so nothing is written");
                    return AFTER_FAILURE;
                }
            }
        }
        let view = GatewayView {
            key: &desired.key,
            trust,
        };
        let discovery = discover(&desired.snapshot, view, &self.shared.settings.namespaces);
        for _ in 0..STALE_TRIES {
            let config = match up {
                None => None,
                Some(up) => match up.door.config().await {
                    Ok(config) => Some(config),
                    Err(error) => return self.failed(desired, &discovery, None, &error),
                },
            };
            let plan = self.plan(desired, &discovery, config.as_ref());
            let change = plan.change.clone().filter(|_| plan.enforce && !desired.deleting);
            if change.is_some()
                && let Some(left) = self.not_before.map(|at| at.saturating_duration_since(Instant::now()))
                && !left.is_zero()
            {
                // What was said when the gateway refused still holds.
                return left;
            }
            let known = if config.is_some() { Known::Now } else { Known::Before };
            self.publish(desired, plan, config.as_ref(), known);
            let (Some(change), Some(up), Some(config)) = (change, up, &config) else {
                return REREAD;
            };
            match self.write(desired, up, config, &change).await {
                Ok(next) => return next,
                Err(CallError::StaleHash) => {}
                Err(error) => return self.failed(desired, &discovery, Some(config), &error),
            }
        }
        AFTER_FAILURE
    }

    fn plan(&self, desired: &Desired, discovery: &Discovery, config: Option<&GatewayConfig>) -> TrustPlan {
        let nothing = BTreeSet::new();
        let owned = self.record.as_ref().map_or(&nothing, |record| &record.owned);
        match &desired.spec {
            Ok(trust) => plan(Inputs {
                trust,
                discovery,
                config,
                owned,
            }),
            // Not reached: a pass over an invalid spec ends before it plans.
            Err(_) => TrustPlan {
                trusted: Default::default(),
                withheld: BTreeSet::new(),
                change: None,
                enforce: false,
                owned_after: owned.clone(),
                verdicts: Vec::new(),
            },
        }
    }

    fn publish(&mut self, desired: &Desired, mut plan: TrustPlan, config: Option<&GatewayConfig>, known: Known) {
        if known == Known::Before
            && let Some(last) = self.last_plan.as_ref().filter(|last| last.trusted == plan.trusted)
        {
            // While the gateway cannot be asked, what was known of its config is still the best that is known.
            let keep = last
                .verdicts
                .iter()
                .filter(|verdict| verdict.kind == ConditionType::TrustApplied)
                .cloned();
            plan.verdicts
                .retain(|verdict| verdict.kind != ConditionType::TrustApplied);
            plan.verdicts.extend(keep);
        }
        let admin_rpc = config.map_or_else(
            || self.shared.trust.borrow().as_ref().is_some_and(|facts| facts.admin_rpc),
            |config| config.admin_rpc,
        );
        if config.is_some() {
            self.last_plan = Some(plan.clone());
        }
        self.shared.trust.send_replace(Some(Facts {
            generation: desired.generation,
            plan,
            admin_rpc,
            changes: self.changes.clone(),
            live: known != Known::Before,
        }));
    }

    fn failed(
        &mut self,
        desired: &Desired,
        discovery: &Discovery,
        config: Option<&GatewayConfig>,
        error: &CallError,
    ) -> Duration {
        tracing::warn!(gateway = %desired.key, %error, "trusted proxies: a call to the gateway failed");
        let (reason, message) = match error {
            CallError::ReadOnly => (
                Reason::ConfigReadOnly,
                "The gateway's config is read-only (OPENCLAW_CONFIG_READONLY, or an immutable file), so its trusted proxies cannot be kept from here. Make it writable, or set gateway.trustedProxies where that config comes from.".to_owned(),
            ),
            CallError::Limited { retry, .. } => (Reason::Throttled, format!("The gateway limits how often its config is written; tried again in {} s.", retry.as_secs())),
            CallError::Refused { method: "config.patch", constant } => (Reason::ConfigRejected, format!("The gateway refused the new list ({constant}); nothing was written. See its log: openclaw logs")),
            other => (Reason::CallFailed, format!("{other}; tried again.")),
        };
        let mut plan = self.plan(desired, discovery, config);
        plan.verdicts
            .retain(|verdict| verdict.kind != ConditionType::TrustApplied);
        plan.verdicts
            .push(Verdict::new(ConditionType::TrustApplied, false, reason, message));
        self.publish(desired, plan, config, Known::Failed);
        let wait = match error {
            CallError::Limited { retry, .. } => (*retry).max(AFTER_FAILURE),
            // Neither gets better by itself.
            CallError::ReadOnly
            | CallError::Refused {
                method: "config.patch", ..
            } => REREAD,
            _ => return AFTER_FAILURE,
        };
        self.not_before = Some(Instant::now() + wait);
        wait
    }

    /// Writes once. The prefixes are remembered as the operator's own before, so that a crash in between leaves
    /// nothing that nobody knows of.
    async fn write(
        &mut self,
        desired: &Desired,
        up: &Up<C::Door>,
        config: &GatewayConfig,
        change: &Change,
    ) -> Result<Duration, CallError> {
        let Some(facts) = self.shared.trust.borrow().clone() else {
            return Ok(AFTER_FAILURE);
        };
        let Some(hash) = &config.hash else {
            return Err(CallError::Bad(crate::gateway::protocol::BadAnswer {
                method: "config.get",
                field: "hash",
            }));
        };
        if self
            .writes
            .is_fought_over(config.trusted_proxies.as_deref().unwrap_or_default())
        {
            self.say(facts, Reason::RevertedByOther, reverted(change));
            return Ok(REREAD);
        }
        let devices = up.door.devices().await?;
        let own_name = self.shared.front.device_name(&desired.key);
        if let Some(other) = claimed_by(&devices, desired, up.own_device.as_str(), &own_name) {
            let message = format!("Another operator manages this gateway already: {other}. Nothing is written.");
            self.say(facts, Reason::GatewayClaimed, message);
            return Ok(REREAD);
        }
        let Some(mut record) = self.record.clone() else {
            return Ok(AFTER_FAILURE);
        };
        record.owned.extend(facts.plan.owned_after.iter().copied());
        if let Err(error) = self.shared.front.remember(&desired.key, &record).await {
            tracing::warn!(gateway = %desired.key, %error, "the write is put off: it could not be remembered first");
            return Ok(AFTER_FAILURE);
        }
        self.record = Some(record.clone());
        let closed = devices
            .paired
            .iter()
            .filter(|record| record.connected && record.device_id != up.own_device.as_str())
            .count();
        up.door.patch(&change.patch, hash).await?;
        self.writes.note(&change.patch.trusted_proxies);
        self.changes.total += 1;
        self.changes.last = Some(Timestamp::now());
        self.changes.clients_closed += closed as u64;
        let message = format!(
            "Wrote gateway.trustedProxies: {}. {closed} connected clients were closed and come again.",
            change.summary()
        );
        self.shared.note(Note {
            subject: Subject::Gateway,
            kind: NoteKind::Normal,
            reason: "TrustedProxiesChanged",
            message,
        });
        record.owned = facts.plan.owned_after;
        if let Err(error) = self.shared.front.remember(&desired.key, &record).await {
            // What is remembered too much is only ever removed where nothing explains it: no harm until the next write.
            tracing::debug!(gateway = %desired.key, %error, "prefixes that went are still remembered");
        } else {
            self.record = Some(record);
        }
        // The write is read back at once: by this loop, or after the reconnect that the gateway's close brings.
        Ok(Duration::from_millis(50))
    }

    /// Says why the change is not made.
    fn say(&mut self, facts: Facts, reason: Reason, message: String) {
        let mut plan = facts.plan;
        plan.verdicts
            .retain(|verdict| verdict.kind != ConditionType::TrustApplied);
        plan.verdicts
            .push(Verdict::new(ConditionType::TrustApplied, false, reason, message));
        self.last_plan = Some(plan.clone());
        self.shared.trust.send_replace(Some(Facts { plan, ..facts }));
    }
}

/// What is said when another owner of the config keeps putting its own list back.
fn reverted(change: &Change) -> String {
    format!(
        "Somebody else keeps putting another list into gateway.trustedProxies: what was written was taken back {REVERTS} times within the hour ({}). It is not fought any longer. Whoever deploys the gateway's openclaw.json has to leave that key alone, or hold these entries. It is tried again when this object's spec changes, or after an hour.",
        change.summary()
    )
}
