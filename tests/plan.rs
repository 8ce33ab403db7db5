//! `plan` offline, as a person runs it: files in, JSON and exit codes out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn plan(arguments: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_gatewaytrust"))
        .arg("plan")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

const FILES: [&str; 8] = [
    "-f",
    "tests/plan/cluster.yaml",
    "-f",
    "tests/plan/trust.yaml",
    "--gateway-state",
    "tests/plan/state.json",
    "--now",
    "2026-11-01T00:00:00Z",
];

#[test]
fn the_plan_of_a_cluster_dump_is_the_same_byte_for_byte() {
    let arguments = [&FILES[..], &["-o", "json"]].concat();
    let first = plan(&arguments, "");
    assert_eq!(first.stdout, plan(&arguments, "").stdout);
    insta::assert_snapshot!(String::from_utf8_lossy(&first.stdout));
}

#[test]
fn the_plan_for_people_says_why() {
    let output = plan(&FILES, "");
    assert!(output.status.success());
    insta::assert_snapshot!(String::from_utf8_lossy(&output.stdout));
}

#[test]
fn exit_codes_tell_changes_and_bad_input_apart() {
    assert_eq!(plan(&FILES, "").status.code(), Some(0));
    assert_eq!(
        plan(&[&FILES[..], &["--exit-code"]].concat(), "").status.code(),
        Some(1),
        "there are changes"
    );
    let settled = "{apiVersion: gatewaytrust.io/v1alpha1, kind: GatewayTrust, metadata: {name: g}, spec: {gateway: {url: 'https://g.example/'}}}";
    assert_eq!(
        plan(&["-f", "-", "--exit-code"], settled).status.code(),
        Some(0),
        "nothing to change"
    );
    let cases = [
        ("{: [", "stdin: not YAML or JSON: "),
        (
            "{a: b}",
            "stdin: document 1: no field `kind`: not an object of the Kubernetes API",
        ),
        (
            "{apiVersion: gatewaytrust.io/v1alpha1, kind: GatewayTrust, metadata: {name: g}, spec: {gateway: {url: 'https://g.example/', service: {name: s}}}}",
            "stdin: GatewayTrust default/g: spec.gateway: exactly one of service and url must be set",
        ),
        (
            "{apiVersion: gatewaytrust.io/v1alpha1, kind: DeviceApproval, metadata: {name: a}, spec: {gatewayTrustRef: {name: g}, roles: [operator], device: {id: '0000000000000000000000000000000000000000000000000000000000000000', publicKey: XnWXxaUCrPgmHCk1k_eo4PWwLlqJVjrrkjm9ErQXCq8}}}",
            "stdin: DeviceApproval default/a: spec.device.id: 0000000000000000000000000000000000000000000000000000000000000000 is not the SHA-256 of spec.device.publicKey",
        ),
        (
            "{apiVersion: gatewaytrust.io/v1alpha1, kind: DeviceApproval, metadata: {name: a}, spec: {gatewayTrustRef: {name: g}, roles: [pilot], device: {id: x}}}",
            "stdin: document 1: spec.roles[0]: unknown variant `pilot`, expected `operator` or `node`",
        ),
    ];
    for (input, message) in cases {
        let output = plan(&["-f", "-"], input);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{input}: {error}");
        assert!(
            error.starts_with(&format!("gatewaytrust: {message}")),
            "{input}: {error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert_eq!(plan(&["-f", "/nowhere"], "").status.code(), Some(2));
    assert_eq!(plan(&["--no-such-flag"], "").status.code(), Some(2));
}

#[test]
fn hostile_input_is_an_error_and_no_crash() {
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n";
    let long_name = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {}}}}}",
        "x".repeat(1 << 20)
    );
    let wrong_types =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {"podIPs": "all of them"}})
            .to_string();
    for (input, code) in [
        (deep.as_str(), 2),
        (bomb, 2),
        (long_name.as_str(), 0),
        (wrong_types.as_str(), 2),
    ] {
        let output = plan(&["-f", "-"], input);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{}: {}",
            &input[..60],
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": (0..2000).map(|n| json!({"kind": format!("Odd{}", n % 7)})).collect::<Vec<_>>()});
    assert_eq!(
        json_of(&plan(&["-f", "-", "-o", "json"], &list.to_string()))["ignored"]["Odd0"],
        286
    );
}
