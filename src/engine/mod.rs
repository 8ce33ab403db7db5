//! One worker per gateway: observe -> plan -> apply -> report. Knows neither kube nor files.
//!
//! Two traits bound it: a [`Front`] (desired objects in; statuses, events and finalizers out) and a
//! [`Connector`] with its doors (the gateway). A worker has four tasks: the *link* keeps
//! the connection, the *approvals lane* and the *trust lane* plan and apply, and the *reporter* publishes. The lanes
//! share nothing but the connection, so an approval never waits for a config write, discovery, a status or an event.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::discovery::NamespacePolicy;
use crate::gateway::Connector;

pub mod approvals_lane;
pub mod front;
pub mod link;
pub mod report;
pub mod reporter;
pub mod trust_lane;

#[cfg(test)]
mod tests;

pub use front::{Desired, Front, Note, NoteKind, Subject, TargetError};
use link::Link;

/// Settings of a worker that do not come from its objects.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Which namespaces proxies may live in.
    pub namespaces: NamespacePolicy,
}

/// What the tasks of one worker share.
struct Shared<F, C: Connector> {
    front: F,
    connector: C,
    settings: Settings,
    desired: watch::Receiver<Arc<Desired>>,
    link: watch::Sender<Link<C::Door>>,
    trust: watch::Sender<Option<trust_lane::Facts>>,
    approvals: watch::Sender<Option<approvals_lane::Facts>>,
    notes: mpsc::Sender<Note>,
}

impl<F, C: Connector> Shared<F, C> {
    fn desired(&self) -> Arc<Desired> {
        self.desired.borrow().clone()
    }

    /// Logs an event, one line for each decision, and hands it to the reporter. A full queue drops it: events inform, statuses tell the truth.
    fn note(&self, note: Note) {
        if note.subject == Subject::Gateway {
            let gateway = &self.desired.borrow().key;
            match note.kind {
                NoteKind::Normal => tracing::info!(%gateway, event = note.reason, "{}", note.message),
                NoteKind::Warning => tracing::warn!(%gateway, event = note.reason, "{}", note.message),
            }
        }
        if self.notes.try_send(note).is_err() {
            tracing::debug!("an event is left out: too many wait");
        }
    }
}

/// The worker of one gateway. Ends when dropped; [`Worker::stop`] waits for it.
pub struct Worker {
    desired: watch::Sender<Arc<Desired>>,
    published: watch::Receiver<reporter::Published>,
    tasks: JoinSet<()>,
}

impl Worker {
    /// Starts a worker.
    pub fn start<F: Front, C: Connector>(front: F, connector: C, settings: Settings, desired: Desired) -> Self {
        let (desired, desired_seen) = watch::channel(Arc::new(desired));
        let (notes, notes_in) = mpsc::channel(256);
        let (published, published_seen) = watch::channel(reporter::Published::default());
        let shared = Arc::new(Shared {
            front,
            connector,
            settings,
            desired: desired_seen,
            link: watch::channel(Link::starting()).0,
            trust: watch::channel(None).0,
            approvals: watch::channel(None).0,
            notes,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(link::run(shared.clone()));
        tasks.spawn(approvals_lane::run(shared.clone()));
        tasks.spawn(trust_lane::run(shared.clone()));
        tasks.spawn(reporter::run(shared, notes_in, published));
        Self {
            desired,
            published: published_seen,
            tasks,
        }
    }

    /// Hands over what is desired now; nothing happens where it is the same.
    pub fn update(&self, desired: Desired) {
        self.desired.send_if_modified(|current| {
            let differs = **current != desired;
            if differs {
                *current = Arc::new(desired);
            }
            differs
        });
    }

    /// What was published last.
    pub fn published(&self) -> watch::Receiver<reporter::Published> {
        self.published.clone()
    }

    /// Ends the worker. What is under way on the wire is cut; the next start reads everything anew.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}
