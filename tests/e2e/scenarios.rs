//! What issue 1 promises, told once and run through both fronts (`kubernetes.rs`, `sync.rs`).

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::device::{ConnectOptions, ConnectOutcome, Device, DeviceIdentity};
use crate::harness::gateway::Gateway;
use crate::harness::netns::{Host, Network};
use crate::harness::wait;
use crate::world::{A_WHILE, Of, PATIENCE, World, approval, enter, refused_for_pairing, url_spec};

/// A device behind nothing waits, gets in by its approval, and is put out by the approval's deletion.
pub async fn let_in_and_put_out(world: &World, gateway: &Gateway, network: &Network, host: &Host) {
    let laptop = DeviceIdentity::generate();
    let scopes = ["operator.read", "operator.write"];
    let url = gateway.url_at(network.gateway_ip());
    let options = ConnectOptions::new(&url, gateway.token()).scopes(&scopes).from(host);
    refused_for_pairing(&laptop, &options).await;
    let pending = wait::until("status.pending to show the device", PATIENCE, async || {
        pending_verdict(&world.status(Of::Gateway).await, &laptop)
    })
    .await;
    assert_eq!(pending, "Unmanaged/NoApproval");

    world.approve("laptop", approval(&laptop, &scopes)).await;
    let conn = enter(&laptop, &options).await;
    assert_eq!(conn.hello()["auth"]["scopes"], json!(scopes));
    world
        .condition(Of::Approval("laptop"), "Ready", "True", "InForce")
        .await;
    world
        .condition(Of::Approval("laptop"), "Approved", "True", "Granted")
        .await;
    world
        .condition(Of::Approval("laptop"), "Connected", "True", "Connected")
        .await;
    world.event("laptop", "DeviceApproved", &laptop.id()[..12]).await;

    world.withdraw("laptop").await;
    assert_eq!(conn.closed().await, (4001, "device removed".to_owned()));
    assert!(gateway.paired(&laptop.id()).await.is_none());
    refused_for_pairing(&laptop, &options).await;
    wait::until("nothing of the approval to be left", PATIENCE, async || {
        match world.status(Of::Approval("laptop")).await {
            Value::Null => Ok(()),
            status => Err(status),
        }
    })
    .await;
    world.shows_no_secret(&[gateway.token()]).await;
}

/// A device that asks for more than was approved is held, and everybody can see what is too much.
pub async fn held_for_asking_more(world: &World, gateway: &Gateway, url: &str) {
    let phone = DeviceIdentity::generate();
    world.approve("phone", approval(&phone, &["operator.read"])).await;
    let options = ConnectOptions::new(url, gateway.token()).scopes(&["operator.read", "operator.admin"]);
    refused_for_pairing(&phone, &options).await;

    let message = world
        .condition(Of::Approval("phone"), "Approved", "False", "AsksForMore")
        .await;
    assert!(
        message.contains("asks for more than this approves: operator.admin"),
        "{message}"
    );
    assert!(
        message.contains("openclaw devices reject"),
        "no next command: {message}"
    );
    world.condition(Of::Approval("phone"), "Ready", "True", "InForce").await;
    wait::until("status.pending to name the excess", PATIENCE, async || {
        let verdict = pending_verdict(&world.status(Of::Gateway).await, &phone)?;
        let expected = "Hold/AsksForMore: operator.admin";
        if verdict == expected { Ok(()) } else { Err(verdict) }
    })
    .await;
    world.event("phone", "DeviceHeld", "operator.admin").await;

    wait::throughout("the device staying out", A_WHILE, async || {
        match (
            gateway.paired(&phone.id()).await,
            Device::connect(&phone, &options).await,
        ) {
            (None, outcome) if outcome.refusal_code() == Some("PAIRING_REQUIRED") => Ok(()),
            (paired, outcome) => Err(format!("{paired:?} {outcome:?}")),
        }
    })
    .await;
    assert!(
        gateway.pending(&phone.id()).await.is_some(),
        "the request was taken away"
    );
    world.withdraw("phone").await;
    world.shows_no_secret(&[gateway.token()]).await;
}

/// The verdict of this device in `status.pending`.
fn pending_verdict(status: &Value, device: &DeviceIdentity) -> Result<String, String> {
    let mut all = status["pending"].as_array().into_iter().flatten();
    let found = all.find(|entry| entry["deviceId"] == device.id());
    let verdict = found.and_then(|entry| entry["verdict"].as_str());
    verdict.map(str::to_owned).ok_or(format!("{status}"))
}

/// A client behind a proxy, let in by the address of that proxy as a person declared it; then the same list in
/// another spelling, and another list.
pub async fn declared_proxy(world: &World, gateway: &Gateway, network: &Network, nginx_url: &str, proxy: &Host) {
    let (client, browser) = (network.host(), DeviceIdentity::generate());
    let options = ConnectOptions::new(nginx_url, gateway.token()).from(&client);
    world.manage(gateway).await;
    refused_for_attribution(&browser, &options).await;

    let reason = "nginx in front of the gateway";
    let ranges = |cidrs: &[String]| {
        let mut spec = url_spec(gateway.port());
        let entries = cidrs.iter().map(|cidr| json!({"cidr": cidr, "reason": reason}));
        spec["proxies"] = json!({"ranges": entries.collect::<Vec<_>>()});
        spec
    };
    let address = proxy.ip.to_string();
    let host_range = format!("{address}/32");
    world
        .trust(ranges(&[host_range.clone(), "203.0.113.0/24".into()]))
        .await;
    until_trusted(&browser, &options).await;
    let pending = gateway.pending(&browser.id()).await.expect("a pending record");
    assert_eq!(pending["remoteIp"], client.ip.to_string(), "the client's own address");
    world.condition(Of::Gateway, "TrustApplied", "True", "AsDeclared").await;
    let status = world.status(Of::Gateway).await;
    assert!(format!("{}", status["trustedProxies"]).contains(reason), "{status}");

    world.approve("browser", approval(&browser, &["operator.read"])).await;
    let conn = enter(&browser, &options).await;
    let before = config_hash(gateway).await;
    let (writes, reloads) = (writes(world).await, hot_reloads(gateway));
    assert_eq!((writes, reloads), (1, 1), "one write so far");

    // The same addresses in another order and spelling: two halves, the bare address, and one that is covered.
    let respelled = ["203.0.113.128/25", "203.0.113.0/25", &address, "203.0.113.7"].map(str::to_owned);
    world.trust(ranges(&respelled)).await;
    wait::until("the new spelling to be seen", PATIENCE, async || {
        let shown = world.status(Of::Gateway).await["trustedProxies"].to_string();
        shown.contains("203.0.113.128/25").then_some(()).ok_or(shown)
    })
    .await;
    wait::throughout("the device staying connected", A_WHILE, async || conn.is_open().await).await;
    assert_eq!(config_hash(gateway).await, before, "something was written");
    assert_eq!((self::writes(world).await, hot_reloads(gateway)), (1, 1));

    world.trust(ranges(&[host_range, "198.51.100.0/24".into()])).await;
    assert_eq!(conn.closed().await, (4001, "gateway policy changed".to_owned()));
    wait::until("the write to be counted", PATIENCE, async || {
        let total = self::writes(world).await;
        (total == 2).then_some(()).ok_or(total.to_string())
    })
    .await;
    drop(enter(&browser, &options).await);
    world.condition(Of::Gateway, "TrustApplied", "True", "AsDeclared").await;
    wait::throughout("one write", A_WHILE, async || {
        let seen = (self::writes(world).await, hot_reloads(gateway));
        (seen == (2, 2)).then_some(()).ok_or(format!("{seen:?}"))
    })
    .await;
    world.shows_no_secret(&[gateway.token()]).await;
}

/// A client behind a proxy that the gateway does not trust.
pub async fn refused_for_attribution(device: &DeviceIdentity, options: &ConnectOptions) {
    match Device::connect(device, options).await {
        ConnectOutcome::Http { status: 403, body } => {
            assert!(body.contains("proxy_attribution_required"), "{body}");
        }
        other => panic!("expected 403, got {other:?}"),
    }
}

/// Waits until the proxy is trusted: then the client behind it is refused only because it is not paired.
pub async fn until_trusted(device: &DeviceIdentity, options: &ConnectOptions) {
    wait::until("the proxy to be trusted", PATIENCE, async || {
        match Device::connect(device, options).await {
            outcome if outcome.refusal_code() == Some("PAIRING_REQUIRED") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// The revision of the gateway's config.
pub async fn config_hash(gateway: &Gateway) -> Value {
    let admin = gateway.admin().await;
    let mut config = admin.call("config.get", json!({})).await.expect("config.get");
    assert!(config["hash"].is_string(), "no hash: {config}");
    config["hash"].take()
}

/// How often the operator says that it has written the gateway's config.
pub async fn writes(world: &World) -> u64 {
    let total = &world.status(Of::Gateway).await["policyChanges"]["total"];
    total.as_u64().expect("status.policyChanges.total")
}

/// How often the gateway says that its proxies were changed.
fn hot_reloads(gateway: &Gateway) -> usize {
    let log = gateway.log_text();
    log.lines()
        .filter(|line| line.contains("config hot reload applied") && line.contains("trustedProxies"))
        .count()
}

/// The operator is stopped, killed, and the gateway loses its volume: the same files lead to the same state.
pub async fn outages(world: &World, gateway: &mut Gateway, url: &str) {
    let (first, second) = (DeviceIdentity::generate(), DeviceIdentity::generate());
    let options = ConnectOptions::new(url, gateway.token());
    world.manage(gateway).await;
    world.approve("first", approval(&first, &["operator.read"])).await;
    let first_conn = enter(&first, &options).await;
    let record = gateway.paired(&first.id()).await.expect("a paired record");

    // SIGTERM: it ends at once and says that all is well; nobody is disconnected.
    {
        let mut runner = world.runner().await;
        let (status, took) = runner.operator().terminate().await;
        assert!(status.success(), "{status}");
        assert!(took < Duration::from_secs(2), "it took {took:?} to end");
        world.approve("second", approval(&second, &["operator.read"])).await;
        refused_for_pairing(&second, &options).await;
        runner.start();
    }
    let second_conn = enter(&second, &options).await;
    assert!(first_conn.is_open().await, "a restart of the operator closed a device");
    let again = gateway.paired(&first.id()).await.expect("a paired record");
    assert_eq!(again["approvedAtMs"], record["approvedAtMs"], "approved again");
    assert!(record["approvedAtMs"].is_number(), "{record}");
    assert_eq!(approvals_logged(gateway, &first), 1);

    // SIGKILL, and a deletion that nobody sees.
    {
        let mut runner = world.runner().await;
        runner.operator().kill();
        world.withdraw_without_waiting("first").await;
        assert!(first_conn.is_open().await);
        runner.start();
    }
    assert_eq!(first_conn.closed().await, (4001, "device removed".to_owned()));
    wait::until("the deleted approval to be gone", PATIENCE, async || {
        let status = world.status(Of::Approval("first")).await;
        status.is_null().then_some(()).ok_or(status)
    })
    .await;
    assert!(second_conn.is_open().await, "the other device was closed too");

    // The gateway's volume is lost: nobody is paired, neither the device nor the operator.
    gateway.wipe_state().await;
    gateway.start().await;
    assert!(gateway.paired(&second.id()).await.is_none());
    let back = enter(&second, &options).await;
    world.condition(Of::Gateway, "Ready", "True", "AsDeclared").await;
    world
        .condition(Of::Approval("second"), "Approved", "True", "Granted")
        .await;
    assert!(gateway.paired(&first.id()).await.is_none());
    assert!(back.is_open().await);
    world.shows_no_secret(&[gateway.token()]).await;
}

/// How often the gateway's log says that a device was approved.
pub fn approvals_logged(gateway: &Gateway, device: &DeviceIdentity) -> usize {
    let line = format!("device pairing approved device={}", device.id());
    gateway.log_text().matches(&line).count()
}
