//! Child processes that never outlive the tests: killed on drop, and by a watchdog if the test process itself dies.
//!
//! The watchdog is one shell per test process that reads what to undo from a pipe. The pipe closes with the test
//! process, however that ends (statics that are never dropped, Ctrl-C, SIGKILL), and then the shell undoes it all.
//! A parent-death signal would not do: it is tied to the thread that forked, and test threads end before the process.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use super::wait;

const WATCHDOG: &str = r#"
groups=' '; dirs=''; netns=''
while read -r verb arg; do
  case $verb in
    run) groups="$groups$arg " ;;
    end) groups="${groups%% $arg *} ${groups#* $arg }" ;;
    dir) dirs="$dirs $arg" ;;
    netns) netns="$netns $arg" ;;
  esac
done
for g in $groups; do kill -s KILL -- "-$g"; done
for n in $netns; do ip netns del "$n"; done
[ -z "$dirs" ] || { rm -rf -- $dirs || { sleep 1; rm -rf -- $dirs; }; }
"#;

static WATCHDOG_SHELL: LazyLock<Mutex<Child>> = LazyLock::new(|| {
    let shell = Command::new("sh")
        .args(["-c", WATCHDOG])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    Mutex::new(shell.expect("starting the watchdog shell"))
});

fn tell_watchdog(verb: &str, arg: &str) {
    let mut shell = WATCHDOG_SHELL.lock().unwrap_or_else(|e| e.into_inner());
    let pipe = shell.stdin.as_mut().expect("the watchdog's stdin");
    writeln!(pipe, "{verb} {arg}").expect("telling the watchdog");
}

/// Has the namespace deleted if the test process dies before it does so itself.
pub fn undo_netns(name: &str) {
    tell_watchdog("netns", name);
}

/// A temporary folder that goes away even when it belongs to a static.
pub fn scratch(name: &str) -> tempfile::TempDir {
    let dir = tempfile::Builder::new()
        .prefix(&format!("gatewaytrust-{name}-"))
        .tempdir()
        .expect("making a temporary folder");
    tell_watchdog("dir", dir.path().to_str().expect("a folder's name in UTF-8"));
    dir
}

/// A port on which nobody listens. It lies below the range from which the kernel takes the local ports of outgoing
/// connections, so that a part which is stopped for a while finds its port free again; and none is handed out twice.
/// Ten apart, because the gateway derives ports of its own from the one it is given.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const SLOTS: u16 = 2_000;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let seed = std::process::id() % u32::from(SLOTS);
        AtomicU16::new(u16::try_from(seed).unwrap_or_default())
    });
    (0..SLOTS)
        .map(|_| FIRST + 10 * (NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS))
        .find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok())
        .expect("a free port")
}

/// One running child with its whole process group, writing into a log file.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it; stdout and stderr are appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("opening a log file");
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("sharing a log file"))
            .stderr(file);
        Self::spawn(name, command, log)
    }

    /// Starts it with stdin and stdout as pipes (to be taken out), stderr in `log`.
    pub fn start_piped(name: &str, command: &mut Command, log: &Path) -> (Self, ChildStdin, std::process::ChildStdout) {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("opening a log file");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut process = Self::spawn(name, command, log);
        let stdin = process.child.stdin.take().expect("stdin");
        let stdout = process.child.stdout.take().expect("stdout");
        (process, stdin, stdout)
    }

    fn spawn(name: &str, command: &mut Command, log: &Path) -> Self {
        let child = command
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("starting {name} ({command:?}): {e}"));
        tell_watchdog("run", &child.id().to_string());
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            ended: None,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, once it has ended. What it left running in its group ends with it.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("waiting for a child");
            if self.ended.is_some() {
                self.end_group();
            }
        }
        self.ended
    }

    /// Sends a signal (`TERM`, `STOP`, ...) to the process alone. Through the shell's own `kill`: no unsafe code, and
    /// not every machine has the program.
    pub fn signal(&self, signal: &str) {
        kill(signal, &self.child.id().to_string());
    }

    /// SIGTERM, then waits for the end; the time it took is measured from the signal.
    pub async fn terminate(&mut self, patience: Duration) -> (ExitStatus, Duration) {
        let start = Instant::now();
        self.signal("TERM");
        let what = format!("{} to end after SIGTERM", self.name);
        let status = wait::until(&what, patience, async || self.ended()).await;
        (status, start.elapsed())
    }

    /// SIGKILL for the whole group, and reaps it.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            self.end_group();
            self.ended = self.child.wait().ok();
        }
    }

    fn end_group(&self) {
        kill("KILL", &format!("-{}", self.child.id()));
        tell_watchdog("end", &self.child.id().to_string());
    }

    pub fn log_text(&self) -> String {
        read_log(&self.log)
    }

    /// `Ok` while it runs, else how it ended and the end of its log: the cause, where a wait would only time out.
    pub fn check_running(&mut self) -> Result<(), String> {
        match self.ended() {
            None => Ok(()),
            Some(status) => Err(format!(
                "{} ended ({status}):\n{}",
                self.name,
                tail(&self.log_text(), 25)
            )),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let end = tail(&self.log_text(), 25);
            eprintln!("--- end of the log of {}:\n{end}\n---", self.name);
        }
    }
}

pub fn read_log(file: &Path) -> String {
    let bytes = std::fs::read(file).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn kill(signal: &str, target: &str) {
    // It may have ended meanwhile: then there is nothing to do, and nothing to say.
    let _ = Command::new("sh")
        .args(["-c", r#"kill -s "$0" -- "$1""#, signal, target])
        .stderr(Stdio::null())
        .status();
}

/// What a command that ran to its end said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// The stdout of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}: {}{}", self.status, self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs a command to its end (at most a minute) with this stdin.
pub async fn run(command: Command, stdin: Option<&str>) -> Finished {
    use tokio::io::AsyncWriteExt as _;
    let described = format!("{command:?}");
    let mut child = tokio::process::Command::from(command)
        .stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|e| panic!("starting {described}: {e}"));
    let pipe = child.stdin.take();
    let feed = async {
        if let (Some(mut pipe), Some(text)) = (pipe, stdin) {
            // A command may refuse early, without reading it all.
            let _ = pipe.write_all(text.as_bytes()).await;
        }
    };
    let whole = async { tokio::join!(feed, child.wait_with_output()).1 };
    let out = tokio::time::timeout(Duration::from_secs(60), whole)
        .await
        .unwrap_or_else(|_| panic!("{described} did not end in a minute"))
        .expect("waiting for a command");
    Finished {
        status: out.status,
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}
