//! Hosts with addresses of their own: network namespaces on one private network, so that a client is remote for the
//! gateway and a proxy has an address that can be trusted.
//!
//! The switch sits in a namespace too: there it is out of reach of the machine's firewall rules, which would drop
//! traffic between bridge ports where a container engine has set its forward policy.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use super::process::{Finished, undo_netns};
use super::{paths, process};

/// Why there can be no network namespaces here. A test that meets it must say so (`harness::skipped`).
#[derive(Debug)]
pub struct Unavailable(pub String);

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no network namespaces: {}", self.0)
    }
}

/// A private network 10.77.N.0/24. This process is `.1` on it (and so is a gateway bound to all addresses).
pub struct Network {
    id: u16,
    subnet: u8,
    switch: String,
    next_host: AtomicU8,
    namespaces: Mutex<Vec<String>>,
}

/// One host on the network: an address in a namespace of its own.
#[derive(Debug, Clone)]
pub struct Host {
    pub netns: String,
    pub ip: Ipv4Addr,
}

static NEXT_NETWORK: AtomicU16 = AtomicU16::new(0);
// Choosing a subnet and taking it must not be interleaved between tests.
static SETUP: Mutex<()> = Mutex::new(());

impl Network {
    pub async fn new() -> Result<Self, Unavailable> {
        if paths::ip().is_none() {
            return Err(Unavailable("`ip` (iproute2) is not installed".into()));
        }
        tokio::task::spawn_blocking(Self::set_up)
            .await
            .expect("setting up a network")
    }

    fn set_up() -> Result<Self, Unavailable> {
        let _guard = SETUP.lock().unwrap_or_else(|e| e.into_inner());
        sweep();
        let pid = std::process::id();
        let id = NEXT_NETWORK.fetch_add(1, Ordering::Relaxed);
        let switch = format!("gt{pid}n{id}");
        undo_netns(&switch);
        ip(&["netns", "add", &switch]).map_err(Unavailable)?;
        let mut network = Self {
            id,
            subnet: 0,
            switch: switch.clone(),
            next_host: AtomicU8::new(2),
            namespaces: Mutex::new(vec![switch.clone()]),
        };
        let taken = ip(&["-4", "-o", "addr"]).map_err(Unavailable)?;
        network.subnet = (0..250u32)
            .map(|i| u8::try_from((pid + i) % 250).unwrap_or_default())
            .find(|n| !taken.contains(&format!(" 10.77.{n}.")))
            .ok_or_else(|| Unavailable("all of 10.77.0.0/16 is taken".into()))?;
        let own_link = network.link_name("r");
        let own_address = format!("{}/24", network.gateway_ip());
        let steps: [&[&str]; 6] = [
            &["-n", &switch, "link", "add", "br0", "type", "bridge"],
            &["-n", &switch, "link", "set", "br0", "up"],
            &[
                "link", "add", &own_link, "type", "veth", "peer", "name", "root", "netns", &switch,
            ],
            &["-n", &switch, "link", "set", "root", "master", "br0", "up"],
            &["addr", "add", &own_address, "dev", &own_link],
            &["link", "set", &own_link, "up"],
        ];
        for step in steps {
            ip(step).map_err(Unavailable)?;
        }
        super::note_once("real network namespaces and veth pairs: in use");
        Ok(network)
    }

    /// This process's (and the gateway's) own address on the network.
    pub fn gateway_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.subnet, 1)
    }

    /// The whole network as a CIDR.
    pub fn cidr(&self) -> String {
        format!("10.77.{}.0/24", self.subnet)
    }

    /// A new host with the next free address (`.2`, `.3`, ...) and a default route by way of `.1`.
    pub fn host(&self) -> Host {
        let number = self.next_host.fetch_add(1, Ordering::Relaxed);
        let netns = format!("{}h{number}", self.switch);
        let ip_address = Ipv4Addr::new(10, 77, self.subnet, number);
        undo_netns(&netns);
        self.namespaces
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .push(netns.clone());
        let port = format!("p{number}");
        let address = format!("{ip_address}/24");
        let gateway = self.gateway_ip().to_string();
        let steps: [&[&str]; 7] = [
            &["netns", "add", &netns],
            &[
                "-n",
                &netns,
                "link",
                "add",
                "eth0",
                "type",
                "veth",
                "peer",
                "name",
                &port,
                "netns",
                &self.switch,
            ],
            &["-n", &self.switch, "link", "set", &port, "master", "br0", "up"],
            &["-n", &netns, "addr", "add", &address, "dev", "eth0"],
            &["-n", &netns, "link", "set", "eth0", "up"],
            &["-n", &netns, "link", "set", "lo", "up"],
            &["-n", &netns, "route", "add", "default", "via", &gateway],
        ];
        for step in steps {
            ip(step).expect("attaching a host");
        }
        Host { netns, ip: ip_address }
    }

    fn link_name(&self, kind: &str) -> String {
        // At most 15 characters for an interface, and a pid may take seven.
        format!("gt{}{kind}{}", std::process::id(), self.id)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The links go with their namespaces.
        let _ = ip(&["link", "del", &self.link_name("r")]);
        for name in self.namespaces.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

impl Host {
    /// A command that runs on this host.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        in_netns(&self.netns, program)
    }

    /// Runs a command on this host to its end.
    pub async fn run(&self, program: &str, args: &[&str]) -> Finished {
        let mut command = self.command(program);
        command.args(args);
        process::run(command, None).await
    }
}

pub fn in_netns(netns: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(paths::ip().expect("ip"));
    command.args(["netns", "exec", netns]).arg(program);
    command
}

/// Deletes what dead test processes left behind (the watchdog normally does, unless it was killed as well).
fn sweep() {
    let Ok(list) = ip(&["netns", "list"]) else {
        return;
    };
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        let pid = name
            .strip_prefix("gt")
            .and_then(|rest| rest.split_once('n'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

fn ip(args: &[&str]) -> Result<String, String> {
    let out = Command::new(paths::ip().expect("ip"))
        .args(args)
        .output()
        .map_err(|e| e.to_string())?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&out.stderr);
    Err(format!("`ip {}`: {}", args.join(" "), why.trim()))
}
