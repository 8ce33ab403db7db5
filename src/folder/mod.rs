//! The front without Kubernetes: the same YAML in a folder, kept in step with the gateway (`sync`).
//!
//! [`scan`] reads the folder, [`state`] remembers what must survive a restart (0600 files), [`target`] finds
//! addresses and credentials. An approval that has left the folder is revoked only when every file of the folder
//! could be read: a half-written file must never look like a deletion.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::Watcher as _;
use thiserror::Error;
use tokio::sync::mpsc;

use crate::api::validated::ValidatedApproval;
use crate::api::{GatewayTrust, ObjectKey};
use crate::cluster::Snapshot;
use crate::engine::front::DesiredApproval;
use crate::engine::{Desired, Settings, Worker};
use crate::gateway::websocket::WebSocketConnector;
use crate::plan::approvals::ApprovalInput;

pub mod front;
pub mod scan;
pub mod state;
pub mod target;

#[cfg(test)]
mod tests;

use front::FolderFront;
use scan::Scan;
use state::{State, StateError};

/// How long after a change the folder is read: editors write a file in several steps.
const SETTLE: Duration = Duration::from_millis(200);
/// The folder is read this often whether or not a change was noticed: network and container mounts tell nothing.
const RESCAN: Duration = Duration::from_secs(5);

/// Settings of `sync`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of YAML files.
    pub folder: PathBuf,
    /// Where the operator's device keys and notes are kept.
    pub state_dir: PathBuf,
    /// A folder of `NAME/KEY` files, as a mounted Secret is.
    pub secrets_dir: Option<PathBuf>,
    /// Origins that a credential may be sent to, besides loopback.
    pub allow_endpoints: Vec<String>,
    /// Whether plain http may be spoken to other hosts than this one.
    pub allow_insecure_urls: bool,
}

/// Why `sync` cannot start.
#[derive(Debug, Error)]
pub enum FolderError {
    /// The folder cannot be read.
    #[error("the folder {0} cannot be read: {1}")]
    Folder(PathBuf, #[source] std::io::Error),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is nothing to do.
    #[error("no GatewayTrust in {0}: write one first (five lines, see examples/quickstart/gateway.yaml)")]
    Nothing(PathBuf),
    /// Files that cannot be read, in `--once`.
    #[error("{}", .0.join("\n"))]
    Unreadable(Vec<String>),
}

/// The workers of a folder, and what feeds them.
pub struct Sync {
    options: Options,
    front: FolderFront,
    workers: BTreeMap<ObjectKey, Worker>,
    trusts: BTreeMap<ObjectKey, GatewayTrust>,
    released: mpsc::UnboundedReceiver<ObjectKey>,
    problems: Vec<String>,
    orphans: Vec<(ObjectKey, String)>,
}

impl Sync {
    /// Opens the state folder; starts nothing yet.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn open(options: Options) -> Result<Self, FolderError> {
        if let Err(error) = std::fs::read_dir(&options.folder) {
            return Err(FolderError::Folder(options.folder.clone(), error));
        }
        let state = State::open(&options.state_dir)?;
        let (tell, released) = mpsc::unbounded_channel();
        let front = FolderFront::new(options.clone(), Arc::new(Mutex::new(state)), tell);
        Ok(Self {
            options,
            front,
            workers: BTreeMap::new(),
            trusts: BTreeMap::new(),
            released,
            problems: Vec::new(),
            orphans: Vec::new(),
        })
    }

    /// Reads the folder and hands what it says to the workers.
    pub async fn refresh(&mut self) -> &[String] {
        let mut scan = scan::read(&self.options.folder);
        if self.misses_something(&scan) {
            // Tools replace a file by removing and making it: what is gone must be gone at a second look too.
            tokio::time::sleep(SETTLE).await;
            scan = scan::read(&self.options.folder);
        }
        if scan.problems != self.problems {
            for problem in &scan.problems {
                tracing::warn!(
                    "{problem}. What it said before stays in force; nothing is revoked while a file cannot be read."
                );
            }
            if scan.problems.is_empty() {
                tracing::info!("all files can be read again");
            }
        }
        if scan.problems.is_empty() {
            self.trusts.clone_from(&scan.trusts);
        } else {
            // A GatewayTrust whose file cannot be read at present goes on as it was.
            self.trusts.extend(scan.trusts.clone());
        }
        let orphans = scan.orphans(&self.trusts);
        for (key, reference) in orphans.iter().filter(|orphan| !self.orphans.contains(orphan)) {
            tracing::warn!(approval = %key, "refers to GatewayTrust {reference}, which no file of the folder holds; nothing is done for it");
        }
        self.orphans = orphans;
        let gone: Vec<ObjectKey> = self
            .workers
            .keys()
            .filter(|key| !self.trusts.contains_key(*key))
            .cloned()
            .collect();
        for key in gone {
            tracing::warn!(gateway = %key, "its GatewayTrust has left the folder: this gateway is left as it is");
            self.workers.remove(&key);
        }
        for (key, trust) in &self.trusts {
            let desired = self.desired(key, trust, &scan);
            match self.workers.get(key) {
                Some(worker) => worker.update(desired),
                None => {
                    let worker = Worker::start(self.front.clone(), WebSocketConnector, Settings::default(), desired);
                    self.workers.insert(key.clone(), worker);
                }
            }
        }
        self.problems = scan.problems;
        &self.problems
    }

    /// Whether an approval that was seen before is in no file now.
    fn misses_something(&self, scan: &Scan) -> bool {
        let state = self.front.state();
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let gateways: Vec<&ObjectKey> = self.trusts.keys().chain(scan.trusts.keys()).collect();
        gateways.into_iter().any(|gateway| {
            let seen = state.approvals(gateway);
            seen.iter().any(|(name, _)| !scan.approvals.contains_key(name)) || !scan.trusts.contains_key(gateway)
        })
    }

    /// What one gateway is kept to. Approvals are noted on disk before anything is approved by them.
    fn desired(&self, key: &ObjectKey, trust: &GatewayTrust, scan: &Scan) -> Desired {
        let state = self.front.state();
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut approvals = BTreeMap::new();
        for (name, approval) in scan.approvals_of(key) {
            let spec = ValidatedApproval::parse(&approval.spec);
            if spec.is_ok() {
                state.note_approval(key, name, &approval.spec);
            }
            let input = ApprovalInput {
                key: name.clone(),
                spec,
                deleting: false,
                guarded: true,
                abandoned: false,
            };
            approvals.insert(
                name.clone(),
                DesiredApproval {
                    input,
                    generation: None,
                    uid: None,
                },
            );
        }
        for (name, spec) in state.approvals(key) {
            let all_read = scan.problems.is_empty();
            let spec = if all_read {
                ValidatedApproval::parse_for_removal(&spec)
            } else {
                ValidatedApproval::parse(&spec)
            };
            let input = ApprovalInput {
                key: name.clone(),
                spec,
                deleting: all_read,
                guarded: true,
                abandoned: false,
            };
            approvals.entry(name).or_insert(DesiredApproval {
                input,
                generation: None,
                uid: None,
            });
        }
        if let Err(error) = state.save(key) {
            tracing::error!(gateway = %key, %error, "the state folder cannot be written, so nothing new is approved; what left the folder is revoked all the same");
            for approval in approvals.values_mut() {
                approval.input.guarded = state.is_on_disk(key, &approval.input.key);
            }
        }
        Desired {
            key: key.clone(),
            generation: None,
            spec: crate::api::validated::ValidatedTrust::parse(&trust.spec),
            deleting: false,
            approvals: approvals.into_values().collect(),
            snapshot: Arc::new(Snapshot::none()),
        }
    }

    /// The gateways at work.
    pub const fn workers(&self) -> &BTreeMap<ObjectKey, Worker> {
        &self.workers
    }

    /// Follows the folder until the future ends.
    pub async fn follow(&mut self, stop: impl Future<Output = ()>) {
        let (changed, mut changes) = mpsc::channel::<()>(1);
        let watcher = watch(&self.options.folder, changed);
        if let Err(error) = &watcher {
            tracing::info!(%error, "changes of the folder are not told here; it is read every {} s", RESCAN.as_secs());
        }
        tokio::pin!(stop);
        loop {
            self.refresh().await;
            tokio::select! {
                () = &mut stop => return,
                Some(()) = changes.recv() => tokio::time::sleep(SETTLE).await,
                Some(_) = self.released.recv() => {}
                () = tokio::time::sleep(RESCAN) => {}
            }
        }
    }

    /// Ends all workers.
    pub async fn stop(self) {
        for worker in self.workers.into_values() {
            worker.stop().await;
        }
    }
}

fn watch(folder: &Path, changed: mpsc::Sender<()>) -> notify::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            // A full queue means that a look at the folder is due anyway.
            let _ = changed.try_send(());
        }
    })?;
    watcher.watch(folder, notify::RecursiveMode::Recursive)?;
    Ok(watcher)
}
