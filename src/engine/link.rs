//! The link: keeps one connection to the gateway, and says in a condition's words why there is none.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use super::front::{Desired, Front, ResolvedTarget, TargetError};
use super::{Note, NoteKind, Shared, Subject};
use crate::api::gateway_trust::Enrolment;
use crate::api::validated::{SpecError, Target, ValidatedTrust};
use crate::api::{DeviceId, ObjectKey, Reason};
use crate::cluster::{ServiceView, SliceView};
use crate::gateway::{ConnectError, Connector, Credential, Door, Identity};

/// The state of the connection.
#[derive(Clone, Debug)]
pub enum Link<D> {
    /// There is none, and this is why.
    Down {
        /// The condition's reason.
        reason: Reason,
        /// Its message.
        message: String,
        /// Since when a Service and its pods have been gone, if they have.
        gone_since: Option<Instant>,
    },
    /// It was there a moment ago and is being made again; nothing is reported yet.
    Again,
    /// There is one.
    Up(Up<D>),
}

/// An open connection.
#[derive(Clone, Debug)]
pub struct Up<D> {
    /// The door.
    pub door: D,
    /// The gateway's address.
    pub shown: String,
    /// The operator's own device.
    pub own_device: DeviceId,
    /// Counts connections: another number is another connection.
    pub number: u64,
}

impl<D> Link<D> {
    /// The state before the first attempt.
    pub const fn starting() -> Self {
        Self::Again
    }

    /// The open connection.
    pub const fn up(&self) -> Option<&Up<D>> {
        match self {
            Self::Up(up) => Some(up),
            _ => None,
        }
    }
}

/// First wait after a failure; doubled each time, with jitter.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Longest wait between attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How often it is looked whether the refused credential has been replaced.
const CREDENTIAL_LOOK: Duration = Duration::from_secs(5);
/// The same credential is tried again after this: the gateway may have been given it meanwhile. Ten tries within a
/// minute would lock the address out; this is one in five.
const SAME_AGAIN: Duration = Duration::from_secs(300);
/// The operator's device asks again at least this often while a person has to approve it.
const ENROLMENT_LOOK: Duration = Duration::from_secs(10);
/// After a close that was to be expected.
const AT_ONCE: Duration = Duration::from_millis(20);
/// But not for a connection that held less than this.
const AT_ONCE_AFTER: Duration = Duration::from_millis(500);
/// A connection that held this long counts as good: waits start from the shortest again.
const GOOD_AFTER: Duration = Duration::from_secs(5);

fn waits() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_WAIT)
        .with_max_delay(LONGEST_WAIT)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}

/// What decides where to connect: while it stays the same, an open connection is left alone.
#[derive(Clone, Debug, PartialEq)]
struct Aim {
    trust: Result<AimSpec, SpecError>,
    service: Option<ServiceView>,
    slices: Vec<SliceView>,
}

type AimSpec = (
    Target,
    Option<crate::api::validated::CredentialReference>,
    Option<crate::api::gateway_trust::SecretKeyReference>,
    Option<String>,
    Enrolment,
);

fn aim(desired: &Desired) -> Aim {
    let trust = match &desired.spec {
        Ok(trust) => trust,
        Err(error) => {
            return Aim {
                trust: Err(error.clone()),
                service: None,
                slices: Vec::new(),
            };
        }
    };
    let spec = (
        trust.target.clone(),
        trust.credential.clone(),
        trust.ca.clone(),
        trust.server_name.clone(),
        trust.enrolment,
    );
    let (service, slices) = match &trust.target {
        Target::Service { name, .. } => {
            let key = ObjectKey::new(&desired.key.namespace, name);
            (
                desired.snapshot.services.get(&key).cloned(),
                desired.snapshot.slices_of(&key).cloned().collect(),
            )
        }
        Target::Url(_) => (None, Vec::new()),
    };
    Aim {
        trust: Ok(spec),
        service,
        slices,
    }
}

/// What came of one attempt.
enum Attempt<D> {
    Up(Box<Up<D>>),
    /// Nothing to say: the next attempt will do.
    Again,
    Down {
        reason: Reason,
        message: String,
        pods_gone: bool,
        wait: Wait,
    },
}

enum Wait {
    /// The next wait of the back-off.
    BackOff,
    /// The next wait of the back-off, but no longer than this.
    BackOffUpTo(Duration),
    /// This long.
    For(Duration),
    /// Until the spec changes; nothing else can help.
    ForSpec,
}

/// Runs for as long as the worker does.
pub(super) async fn run<F: Front, C: Connector>(shared: Arc<Shared<F, C>>) {
    let mut desired_changed = shared.desired.clone();
    let mut backoff = waits();
    let mut refused: Option<(Credential, Instant)> = None;
    let mut number = 0;
    let mut gone_since: Option<Instant> = None;
    loop {
        let desired = desired_changed.borrow_and_update().clone();
        let aimed = aim(&desired);
        let wait = match attempt(&shared, &desired, &mut refused, number).await {
            Attempt::Up(up) => {
                number += 1;
                gone_since = None;
                tracing::info!(gateway = %desired.key, url = %up.shown, version = up.door.version(), "connected to the gateway");
                let since = Instant::now();
                let mut closed = up.door.signals().closed;
                shared.link.send_replace(Link::Up(*up));
                let planned = hold(&mut desired_changed, &aimed, &mut closed, &desired.key).await;
                shared.link.send_replace(Link::Again);
                if since.elapsed() >= GOOD_AFTER || (planned && since.elapsed() >= AT_ONCE_AFTER) {
                    backoff = waits();
                }
                // The gateway closes everybody when its policy changes: approvals need the connection back at once.
                if planned && since.elapsed() >= AT_ONCE_AFTER {
                    Wait::For(AT_ONCE)
                } else {
                    Wait::BackOff
                }
            }
            Attempt::Again => Wait::BackOff,
            Attempt::Down {
                reason,
                message,
                pods_gone,
                wait,
            } => {
                gone_since = if pods_gone {
                    gone_since.or_else(|| Some(Instant::now()))
                } else {
                    None
                };
                say_down(&shared, reason, message, gone_since);
                wait
            }
        };
        let pause = match wait {
            Wait::BackOff => backoff.next().unwrap_or(LONGEST_WAIT),
            Wait::BackOffUpTo(longest) => backoff.next().unwrap_or(longest).min(longest),
            Wait::For(pause) => pause,
            Wait::ForSpec => Duration::from_secs(24 * 3600),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = until_aim_changes(&mut desired_changed, &aimed) => {
                backoff = waits();
                // Another pod may have been given this credential.
                refused = None;
            }
        }
    }
}

fn say_down<F, C: Connector>(shared: &Shared<F, C>, reason: Reason, message: String, gone_since: Option<Instant>) {
    let news = shared.link.send_if_modified(|link| {
        let same = matches!(&*link, Link::Down { reason: old, message: text, gone_since: gone } if *old == reason && *text == message && *gone == gone_since);
        if !same {
            *link = Link::Down { reason, message: message.clone(), gone_since };
        }
        !same
    });
    if news {
        shared.note(Note {
            subject: Subject::Gateway,
            kind: NoteKind::Warning,
            reason: reason.as_str(),
            message,
        });
    }
}

/// Waits until the connection ends or something else is aimed at. Whether that was to be expected.
async fn hold(
    desired: &mut tokio::sync::watch::Receiver<Arc<Desired>>,
    aimed: &Aim,
    closed: &mut tokio::sync::watch::Receiver<Option<crate::gateway::door::Closed>>,
    key: &ObjectKey,
) -> bool {
    tokio::select! {
        end = closed.wait_for(Option::is_some) => {
            let end = end.ok().and_then(|end| end.clone());
            let (code, reason) = end.map_or((1006, String::new()), |end| (end.code, end.reason));
            tracing::info!(gateway = %key, code, %reason, "the connection to the gateway ended");
            // The gateway closes everybody after a policy change (4001) and at a restart (1012).
            matches!(code, 4001 | 1012)
        }
        () = until_aim_changes(desired, aimed) => true,
    }
}

async fn until_aim_changes(desired: &mut tokio::sync::watch::Receiver<Arc<Desired>>, aimed: &Aim) {
    loop {
        if desired.changed().await.is_err() {
            // The worker is being dropped; its tasks end with it.
            std::future::pending::<()>().await;
        }
        if aim(&desired.borrow_and_update()) != *aimed {
            return;
        }
    }
}

async fn attempt<F: Front, C: Connector>(
    shared: &Shared<F, C>,
    desired: &Desired,
    refused: &mut Option<(Credential, Instant)>,
    number: u64,
) -> Attempt<C::Door> {
    let trust = match &desired.spec {
        Ok(trust) => trust,
        Err(error) => {
            return Attempt::Down {
                reason: Reason::InvalidSpec,
                message: error.to_string(),
                pods_gone: false,
                wait: Wait::ForSpec,
            };
        }
    };
    let target = match shared.front.target(desired, trust).await {
        Ok(target) => target,
        Err(error) => {
            let pods_gone = matches!(error, TargetError::ServiceNotFound { pods_gone: true, .. });
            return Attempt::Down {
                reason: error.reason(),
                message: error.to_string(),
                pods_gone,
                wait: Wait::BackOff,
            };
        }
    };
    if refused
        .as_ref()
        .is_some_and(|(credential, at)| *credential == target.credential && at.elapsed() < SAME_AGAIN)
    {
        // The same wrong token is not tried twice: the last message still holds.
        return still_refused(shared);
    }
    let identity = match shared.front.record(&desired.key).await {
        Ok(record) => record.identity,
        Err(error) => {
            return Attempt::Down {
                reason: Reason::SourceUnavailable,
                message: error.to_string(),
                pods_gone: false,
                wait: Wait::BackOff,
            };
        }
    };
    let name = shared.front.device_name(&desired.key);
    match shared
        .connector
        .connect(&target.endpoint, &target.credential, &identity, &name)
        .await
    {
        Ok(door) => {
            *refused = None;
            Attempt::Up(Box::new(Up {
                door,
                shown: target.endpoint.shown(),
                own_device: identity.device_id(),
                number: number + 1,
            }))
        }
        Err(ConnectError::PairingRequired { request_id }) => enrol(shared, trust, &target, &identity, request_id).await,
        Err(error) => {
            if error.waits_for_new_credential() {
                *refused = Some((target.credential, Instant::now()));
            }
            let wait = match &error {
                ConnectError::WrongToken(_) => Wait::For(CREDENTIAL_LOOK),
                ConnectError::RateLimited { retry } => Wait::For(*retry + FIRST_WAIT),
                _ => Wait::BackOff,
            };
            Attempt::Down {
                reason: error.reason(),
                message: match error.next_command(&target.endpoint.origin) {
                    Some(command) => format!("{error} Look: {command}"),
                    None => error.to_string(),
                },
                pods_gone: false,
                wait,
            }
        }
    }
}

fn still_refused<F, C: Connector>(shared: &Shared<F, C>) -> Attempt<C::Door> {
    let (reason, message) = match &*shared.link.borrow() {
        Link::Down { reason, message, .. } => (*reason, message.clone()),
        _ => (
            Reason::WrongToken,
            ConnectError::WrongToken("as before".to_owned()).to_string(),
        ),
    };
    Attempt::Down {
        reason,
        message,
        pods_gone: false,
        wait: Wait::For(CREDENTIAL_LOOK),
    }
}

/// The operator's own device is not paired: by the admin plugin where it is on, else a person approves it once.
async fn enrol<F: Front, C: Connector>(
    shared: &Shared<F, C>,
    trust: &ValidatedTrust,
    target: &ResolvedTarget,
    identity: &Identity,
    request_id: Option<String>,
) -> Attempt<C::Door> {
    let mut tried = String::new();
    if let (Enrolment::Auto | Enrolment::AdminRpc, Some(request_id)) = (trust.enrolment, &request_id) {
        match shared
            .connector
            .enrol_by_admin_rpc(&target.endpoint, &target.credential, request_id)
            .await
        {
            Ok(true) => {
                tracing::info!(
                    device = identity.device_id().short(),
                    "the operator's device was paired by the admin RPC plugin"
                );
                return Attempt::Again;
            }
            Ok(false) => "The admin RPC plugin is off, and need not be turned on. ".clone_into(&mut tried),
            Err(error) => tried = format!("The admin RPC plugin did not do it ({}). ", error.reason()),
        }
    }
    let beside = &target.beside_gateway;
    let command = match &request_id {
        Some(id) => format!("{beside}openclaw devices approve {id}"),
        None => format!("{beside}openclaw devices list, then openclaw devices approve <its request>"),
    };
    let message = format!(
        "The gateway does not know the operator's own device yet. {tried}Approve it once: {command}   (its device id begins with {}; a request lives five minutes and is made anew)",
        identity.device_id().short()
    );
    Attempt::Down {
        reason: Reason::EnrolmentPending,
        message,
        pods_gone: false,
        wait: Wait::BackOffUpTo(ENROLMENT_LOOK),
    }
}
