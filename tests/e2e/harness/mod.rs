//! Starts and stops the real parts for the tests, and the operator itself; keeps a report of what ran on what.
#![allow(dead_code, reason = "each test uses a part of the harness")]

pub mod connection;
pub mod control_plane;
pub mod device;
pub mod gateway;
pub mod netns;
pub mod nginx;
pub mod paths;
pub mod process;
pub mod wait;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

use process::{Finished, Process, scratch};

/// Adds a line to the report (the file named by `GATEWAYTRUST_TEST_REPORT`, if set).
pub fn note(line: &str) {
    let Some(file) = std::env::var_os("GATEWAYTRUST_TEST_REPORT") else {
        return;
    };
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .expect("opening the report");
    // One write, because other test processes append too.
    file.write_all(format!("{line}\n").as_bytes())
        .expect("writing the report");
}

/// The same, once per test process.
pub fn note_once(line: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(|e| e.into_inner()).insert(line.to_owned()) {
        note(line);
    }
}

/// Says that a test could not run here: in the report, and on stderr past the test runner, which hides what is printed
/// by tests that pass.
pub fn skipped(test: &str, reason: impl std::fmt::Display) {
    let line = format!("SKIPPED: {test}: {reason}");
    let _ = writeln!(std::io::stderr(), "{line}");
    note(&line);
}

/// The operator's binary, running.
pub struct Operator {
    process: Process,
    dir: TempDir,
}

impl Operator {
    /// `gatewaytrust run` against a cluster.
    pub fn run(kubeconfig: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(paths::operator());
        command.arg("run").args(args).env("KUBECONFIG", kubeconfig);
        Self::start(command)
    }

    /// `gatewaytrust sync` on a folder.
    pub fn sync(dir: &Path, state_dir: &Path, envs: &[(&str, &str)], args: &[&str]) -> Self {
        let mut command = Command::new(paths::operator());
        command.args(["sync", "-f"]).arg(dir).arg("--state-dir").arg(state_dir);
        command.args(args).envs(envs.iter().copied());
        Self::start(command)
    }

    /// Any other command that goes on until it is stopped.
    pub fn start(mut command: Command) -> Self {
        let dir = scratch("operator");
        // It must not find a cluster, or a state, of the developer's own.
        command.current_dir(dir.path()).env("HOME", dir.path());
        command.env_remove("KUBERNETES_SERVICE_HOST");
        let process = Process::start("operator", &mut command, &dir.path().join("log"));
        Self { process, dir }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// stdout and stderr.
    pub fn log_text(&self) -> String {
        self.process.log_text()
    }

    /// The exit status, once it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// SIGTERM, and how long it took to end.
    pub async fn terminate(&mut self) -> (ExitStatus, Duration) {
        self.process.terminate(Duration::from_secs(60)).await
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Any other signal: `STOP` and `CONT` for a stalled leader.
    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }
}

/// Runs another command of the binary (`plan`, `doctor`, ...) to its end.
pub async fn gatewaytrust(args: &[&str], envs: &[(&str, &str)], stdin: Option<&str>) -> Finished {
    let mut command = Command::new(paths::operator());
    command.args(args).envs(envs.iter().copied());
    process::run(command, stdin).await
}
