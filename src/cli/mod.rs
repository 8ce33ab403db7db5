//! The commands. Results go to stdout, diagnostics to stderr; exit codes: 0 done, 1 the answer is no, 2 the input or
//! the usage is wrong.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

use crate::api::schema;
use crate::telemetry::{self, LogFormat};

pub mod live;
pub mod plan;
pub mod sources;
pub mod sync;

/// Keeps an OpenClaw gateway's trust (its proxies and its devices) in Git.
#[derive(Debug, Parser)]
#[command(
    name = "gatewaytrust",
    version,
    about,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Arguments {
    /// How log lines look (they go to stderr).
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "GATEWAYTRUST_LOG_FORMAT")]
    log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The operator: watches GatewayTrust and DeviceApproval objects and keeps their gateways so.
    #[command(
        after_help = "Example:\n  gatewaytrust run            # kubeconfig, or the service account inside a cluster"
    )]
    Run(RunArguments),
    /// The same without Kubernetes: from a folder of the same YAML.
    #[command(
        after_help = "Example:\n  OPENCLAW_GATEWAY_TOKEN=... gatewaytrust sync -f trust/            # follows the files\n  OPENCLAW_GATEWAY_TOKEN_FILE=/run/secrets/token gatewaytrust sync -f trust/ --once"
    )]
    Sync(SyncArguments),
    /// What would be done, and why. Without -f: from the live cluster and gateway. With -f: fully offline.
    #[command(
        after_help = "Example:\n  kubectl get services,endpointslices,ingresses,ingressclasses,pods,namespaces,gatewaytrusts,deviceapprovals -A -o yaml | gatewaytrust plan -f -"
    )]
    Plan(PlanArguments),
    /// The custom resource definitions, as YAML.
    #[command(after_help = "Example:\n  gatewaytrust crds | kubectl apply --server-side -f -")]
    Crds,
    /// Shell completion.
    #[command(after_help = "Example:\n  gatewaytrust completion bash > /etc/bash_completion.d/gatewaytrust")]
    Completion {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
struct RunArguments {
    /// Allow `spec.gateway.url` to be plain http. The token then crosses the network readable.
    #[arg(long)]
    allow_insecure_gateway_urls: bool,
    /// Namespaces that proxies may live in besides their controllers' usual ones (`*`: all). May be repeated.
    #[arg(long, value_delimiter = ',', env = "GATEWAYTRUST_PROXY_NAMESPACES")]
    proxy_namespaces: Vec<String>,
}

#[derive(Debug, Args)]
struct SyncArguments {
    /// The folder of YAML files.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    folder: PathBuf,
    /// Do it once and end: 0 if everything is as declared, 1 if not.
    #[arg(long)]
    once: bool,
    /// With --once: how long to wait for everything to be as declared.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Where the operator's device keys and notes are kept (mode 0700).
    #[arg(
        long,
        value_name = "DIR",
        env = "GATEWAYTRUST_STATE_DIR",
        default_value = ".gatewaytrust"
    )]
    state_dir: PathBuf,
    /// A folder of NAME/KEY files for the Secret references in the YAML. Without it: environment variables KEY, or
    /// files that KEY_FILE names.
    #[arg(long, value_name = "DIR", env = "GATEWAYTRUST_SECRETS_DIR")]
    secrets_dir: Option<PathBuf>,
    /// An origin that the token may be sent to, such as https://gateway.example. Loopback needs none. May be repeated.
    #[arg(
        long,
        value_name = "ORIGIN",
        value_delimiter = ',',
        env = "GATEWAYTRUST_ALLOW_ENDPOINT"
    )]
    allow_endpoint: Vec<String>,
    /// Allow plain http to other hosts than this one. The token then crosses the network readable.
    #[arg(long)]
    allow_insecure_gateway_urls: bool,
}

#[derive(Debug, Args)]
struct PlanArguments {
    /// Files, folders (read recursively) or `-` for stdin: dumps of the cluster and our own objects. May be repeated.
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// The gateway's state as JSON ({"config", "devices"}), for all gateways or one. May be repeated.
    #[arg(long, value_name = "[NAMESPACE/NAME=]FILE")]
    gateway_state: Vec<String>,
    /// Plan as of this time instead of now (RFC 3339).
    #[arg(long, value_name = "TIME")]
    now: Option<jiff::Timestamp>,
    /// Namespaces that proxies may live in besides their controllers' usual ones (`*`: all). May be repeated.
    #[arg(long, value_delimiter = ',', env = "GATEWAYTRUST_PROXY_NAMESPACES")]
    proxy_namespaces: Vec<String>,
    /// Write what is known of the gateways to a file, for --gateway-state (it holds no secret).
    #[arg(long, value_name = "FILE", conflicts_with = "files")]
    record: Option<PathBuf>,
    /// Without -f: allow `spec.gateway.url` to be plain http. The token then crosses the network readable.
    #[arg(long)]
    allow_insecure_gateway_urls: bool,
    /// How the plan is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// End with 1 if something would be changed.
    #[arg(long)]
    exit_code: bool,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// JSON, in a stable order.
    Json,
    /// YAML, in a stable order.
    Yaml,
}

/// Why a command failed. Input that is wrong ends with 2, all else with 1.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The input or the usage is wrong: what, where, and what to do.
    #[error("{0}")]
    Input(String),
    /// It could not be done.
    #[error("{0}")]
    Failed(String),
}

/// What a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done, or yes.
    Yes,
    /// The answer is no.
    No,
}

/// Runs a command.
pub fn main(arguments: Arguments) -> ExitCode {
    let level = if matches!(arguments.command, Command::Plan(_)) {
        "warn"
    } else {
        "info"
    };
    telemetry::start(arguments.log_format, level);
    // One TLS provider for everything; a second installation (in a test) is refused, and the first one stays.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match execute(arguments.command) {
        Ok(Answer::Yes) => ExitCode::SUCCESS,
        Ok(Answer::No) => ExitCode::from(1),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "gatewaytrust: {error}");
            ExitCode::from(if matches!(error, CommandError::Input(_)) { 2 } else { 1 })
        }
    }
}

/// Prints a result. A reader that has gone (`| head`) is no error.
///
/// # Errors
/// [`CommandError::Failed`] where stdout cannot be written otherwise.
pub fn print(text: &str) -> Result<(), CommandError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CommandError::Failed(format!("stdout: {error}")))
        }
        _ => Ok(()),
    }
}

fn execute(command: Command) -> Result<Answer, CommandError> {
    match command {
        Command::Crds => {
            let failed = |error: String| CommandError::Failed(format!("the schema could not be written: {error}"));
            let crds = schema::crds().map_err(|error| failed(error.to_string()))?;
            let texts = crds
                .iter()
                .map(crate::folder::front::yaml)
                .collect::<Result<Vec<_>, _>>()
                .map_err(failed)?;
            let header = "# Generated by `gatewaytrust crds`. Do not edit.\n";
            print(&format!(
                "{header}{}",
                texts
                    .iter()
                    .map(|text| format!("---\n{}\n", text.trim_end()))
                    .collect::<String>()
            ))?;
            Ok(Answer::Yes)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "gatewaytrust", &mut script);
            print(&String::from_utf8_lossy(&script))?;
            Ok(Answer::Yes)
        }
        Command::Plan(arguments) => runtime()?.block_on(plan::execute(arguments)),
        Command::Sync(arguments) => runtime()?.block_on(sync::execute(arguments)),
        Command::Run(arguments) => runtime()?.block_on(run(arguments)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| CommandError::Failed(format!("no runtime: {error}")))
}

async fn run(arguments: RunArguments) -> Result<Answer, CommandError> {
    let stop = stop_signal()?;
    let options = crate::controller::Options {
        allow_insecure_urls: arguments.allow_insecure_gateway_urls,
        namespaces: crate::discovery::NamespacePolicy::new(arguments.proxy_namespaces.iter().map(String::as_str)),
    };
    let client = live::client().await?;
    crate::controller::run(client, options, stop)
        .await
        .map_err(|error| CommandError::Failed(error.to_string()))?;
    Ok(Answer::Yes)
}

/// Ends with the first SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()>, CommandError> {
    let listen = |kind| signal(kind).map_err(|error| CommandError::Failed(format!("signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Whatever hangs after this must not hold the process up: a supervisor would only kill it.
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(1500));
            std::process::exit(0);
        });
    })
}
