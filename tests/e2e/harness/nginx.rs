//! The real nginx as a reverse proxy on a host of its own. It overwrites the forwarding headers, as ingresses do.

use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use super::netns::Host;
use super::process::{Process, free_port, read_log, scratch};
use super::{note_once, paths, process, wait};
use std::time::Duration;

const PORT: u16 = 8080;

pub struct Nginx {
    process: Process,
    address: SocketAddr,
    dir: TempDir,
}

impl Nginx {
    /// Starts nginx on `host` as a proxy of `upstream` (`address:port`). `None`: nginx is not installed.
    pub async fn start(host: &Host, upstream: &str) -> Option<Self> {
        let program = paths::nginx()?;
        let dir = scratch("nginx");
        let at = dir.path().to_str().expect("a folder's name in UTF-8");
        let address = SocketAddr::from((host.ip, PORT));
        let config = dir.path().join("nginx.conf");
        std::fs::write(&config, configuration(at, address, upstream)).expect("writing nginx.conf");
        let mut command = host.command(&program);
        command
            .arg("-c")
            .arg(&config)
            .args(["-p", at, "-e"])
            .arg(dir.path().join("error.log"));
        let mut process = Process::start("nginx", &mut command, &dir.path().join("output.log"));
        wait::until("nginx to listen", Duration::from_secs(10), async || {
            process.check_running()?;
            tokio::net::TcpStream::connect(address).await.map_err(|e| e.to_string())
        })
        .await;
        note_once(&format!("real {} as a reverse proxy: started", version(&program)));
        Some(Self { process, address, dir })
    }

    /// Where clients connect: `ws://address:port`.
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Access and error log.
    pub fn log_text(&self) -> String {
        let dir = self.dir.path();
        read_log(&dir.join("access.log")) + &read_log(&dir.join("error.log")) + &self.process.log_text()
    }
}

fn configuration(dir: &str, listen: SocketAddr, upstream: &str) -> String {
    let forwarding = "proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;";
    frame(dir, &format!("listen {listen};"), upstream, forwarding)
}

fn frame(dir: &str, listen: &str, upstream: &str, forwarding: &str) -> String {
    // One process only: a worker would outlive a killed master.
    format!(
        r#"daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections 512; }}
http {{
  access_log {dir}/access.log;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
  server {{
    {listen}
    location / {{
      proxy_pass http://{upstream};
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      {forwarding}
      proxy_read_timeout 1h;
      proxy_buffering off;
    }}
  }}
}}
"#
    )
}

fn version(program: &std::path::Path) -> String {
    let out = Command::new(program).arg("-v").output().expect("nginx -v");
    String::from_utf8_lossy(&out.stderr)
        .trim()
        .replace("nginx version: ", "")
}

/// nginx on this machine's loopback that only ends TLS: it adds no forwarding header, so the gateway sees a client
/// of its own host.
pub struct TlsFront {
    _process: Process,
    port: u16,
    dir: TempDir,
}

impl TlsFront {
    /// In front of `upstream` (`address:port`), with a certificate for 127.0.0.1 of an authority of its own. `None`:
    /// nginx is not installed.
    pub async fn start(upstream: &str) -> Option<Self> {
        let program = paths::nginx()?;
        let dir = scratch("tls");
        let at = dir.path().to_str().expect("a folder's name in UTF-8");
        make_certificates(at).await;
        let port = free_port();
        let config = dir.path().join("nginx.conf");
        let text = frame(
            at,
            &format!(
                "listen 127.0.0.1:{port} ssl;
    ssl_certificate {at}/server.pem;
    ssl_certificate_key {at}/server.key;"
            ),
            upstream,
            "",
        );
        std::fs::write(&config, text).expect("writing nginx.conf");
        let mut command = Command::new(&program);
        command
            .arg("-c")
            .arg(&config)
            .args(["-p", at, "-e"])
            .arg(dir.path().join("error.log"));
        let mut process = Process::start("nginx (TLS)", &mut command, &dir.path().join("output.log"));
        wait::until("nginx to listen", Duration::from_secs(10), async || {
            process.check_running()?;
            let loopback = (std::net::Ipv4Addr::LOCALHOST, port);
            tokio::net::TcpStream::connect(loopback)
                .await
                .map_err(|e| e.to_string())
        })
        .await;
        note_once(&format!("real {} with TLS: started", version(&program)));
        Some(Self {
            _process: process,
            port,
            dir,
        })
    }

    /// `https://127.0.0.1:PORT`
    pub fn origin(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The authority that signed the certificate, in PEM.
    pub fn authority(&self) -> String {
        read_log(&self.dir.path().join("authority.pem"))
    }
}

async fn make_certificates(dir: &str) {
    let key = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ];
    let openssl = async |args: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509"]).args(key).args(args).current_dir(dir);
        process::run(command, None).await.ok();
    };
    let names = [
        "-subj",
        "/CN=an authority of a test",
        "-keyout",
        "authority.key",
        "-out",
        "authority.pem",
    ];
    openssl(&names).await;
    openssl(&[
        "-subj",
        "/CN=gateway",
        "-keyout",
        "server.key",
        "-out",
        "server.pem",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-CA",
        "authority.pem",
        "-CAkey",
        "authority.key",
    ])
    .await;
}
