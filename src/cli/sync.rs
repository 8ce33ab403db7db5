//! `sync`: the engine over a folder.

use std::time::Duration;

use tokio::time::Instant;

use super::{Answer, CommandError, SyncArguments, print, stop_signal};
use crate::api::ObjectKey;
use crate::engine::reporter::Published;
use crate::folder::{FolderError, Options, Sync};

/// Reasons that waiting does not change: somebody has to act first.
const HOPELESS: [&str; 9] = [
    "InvalidSpec",
    "CredentialNotFound",
    "SecretNotFound",
    "SecretKeyMissing",
    "EndpointNotAllowed",
    "InsecureUrl",
    "AddressRefused",
    "WrongToken",
    "EnrolmentPending",
];

fn command_error(error: FolderError) -> CommandError {
    match error {
        FolderError::State(_) => CommandError::Failed(error.to_string()),
        _ => CommandError::Input(error.to_string()),
    }
}

/// Runs `sync`.
pub(super) async fn execute(arguments: SyncArguments) -> Result<Answer, CommandError> {
    let stop = stop_signal()?;
    let options = Options {
        folder: arguments.folder.clone(),
        state_dir: arguments.state_dir,
        secrets_dir: arguments.secrets_dir,
        allow_endpoints: arguments.allow_endpoint,
        allow_insecure_urls: arguments.allow_insecure_gateway_urls,
    };
    let mut sync = Sync::open(options).map_err(command_error)?;
    if !arguments.once {
        tracing::info!(folder = %arguments.folder.display(), version = env!("CARGO_PKG_VERSION"), "gatewaytrust follows this folder");
        sync.follow(stop).await;
        sync.stop().await;
        return Ok(Answer::Yes);
    }
    let problems = sync.refresh().await.to_vec();
    if !problems.is_empty() {
        return Err(command_error(FolderError::Unreadable(problems)));
    }
    if sync.workers().is_empty() {
        return Err(command_error(FolderError::Nothing(arguments.folder)));
    }
    tokio::select! {
        () = wait(&sync, Instant::now() + Duration::from_secs(arguments.timeout)) => {}
        () = stop => {}
    }
    let last: Vec<(ObjectKey, Published)> = sync
        .workers()
        .iter()
        .map(|(key, worker)| (key.clone(), worker.published().borrow().clone()))
        .collect();
    sync.stop().await;
    let mut good = true;
    for (key, published) in last {
        good &= published.settled && is_ready(&published);
        print(&describe(&key, &published))?;
    }
    Ok(if good { Answer::Yes } else { Answer::No })
}

/// Waits until every gateway is settled, or cannot become so by waiting.
async fn wait(sync: &Sync, until: Instant) {
    for worker in sync.workers().values() {
        let mut published = worker.published();
        let done = published
            .wait_for(|now| now.settled || now.trust.as_ref().is_some_and(|_| now.answered && is_hopeless(now)));
        if tokio::time::timeout_at(until, done).await.is_err() {
            return;
        }
    }
}

fn condition<'a>(
    published: &'a Published,
    kind: &str,
) -> Option<&'a k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    published
        .trust
        .as_ref()?
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind)
}

fn is_hopeless(published: &Published) -> bool {
    if condition(published, "ApprovalsEnforced").is_some_and(|condition| condition.reason == "GatewayClaimed") {
        return true;
    }
    condition(published, "GatewayReachable").is_some_and(|condition| HOPELESS.contains(&condition.reason.as_str()))
}

fn is_ready(published: &Published) -> bool {
    let approvals = published.approvals.values().all(|status| {
        status
            .conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    });
    approvals && condition(published, "Ready").is_some_and(|condition| condition.status == "True")
}

/// What a person wants to read after `--once`.
fn describe(key: &ObjectKey, published: &Published) -> String {
    let mut text = format!("GatewayTrust {key}\n");
    let Some(status) = &published.trust else {
        return format!("{text}  no answer yet\n");
    };
    for condition in &status.conditions {
        text.push_str(&format!(
            "  {:<18} {:<8} {:<22} {}\n",
            condition.type_, condition.status, condition.reason, condition.message
        ));
    }
    for device in &status.pending {
        text.push_str(&format!(
            "  pending device {} as {}: {}\n",
            device.device_id, device.role, device.verdict
        ));
    }
    for (name, status) in &published.approvals {
        for condition in status
            .conditions
            .iter()
            .filter(|condition| condition.type_ != "Connected")
        {
            text.push_str(&format!(
                "  DeviceApproval {name}: {} {} {} {}\n",
                condition.type_, condition.status, condition.reason, condition.message
            ));
        }
    }
    text
}
