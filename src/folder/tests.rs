use super::*;
use crate::api::ObjectKey;
use crate::api::gateway_trust::SecretKeyReference;
use crate::api::validated::{CredentialKind, CredentialReference};
use crate::engine::front::TargetError;

const TRUST: &str = "{apiVersion: gatewaytrust.io/v1alpha1, kind: GatewayTrust, metadata: {name: g}, spec: {gateway: {url: 'http://127.0.0.1:1/'}}}";

fn approval(name: &str, device: char) -> String {
    let id = device.to_string().repeat(64);
    format!(
        "{{apiVersion: gatewaytrust.io/v1alpha1, kind: DeviceApproval, metadata: {{name: {name}}}, spec: {{gatewayTrustRef: {{name: g}}, device: {{id: '{id}'}}, roles: [operator]}}}}"
    )
}

struct Folders {
    _root: tempfile::TempDir,
    sync: Sync,
    files: PathBuf,
}

fn folders() -> Folders {
    let root = tempfile::tempdir().expect("folder");
    let files = root.path().join("files");
    std::fs::create_dir(&files).expect("folder");
    let options = Options {
        folder: files.clone(),
        state_dir: root.path().join("state"),
        secrets_dir: None,
        allow_endpoints: vec![],
        allow_insecure_urls: false,
    };
    Folders {
        sync: Sync::open(options).expect("open"),
        _root: root,
        files,
    }
}

impl Folders {
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.files.join(name), text).expect("write");
    }

    /// What the gateway `default/g` is kept to: each approval with its device's first digit, and whether it is being
    /// revoked.
    fn desired(&self) -> Vec<(String, char, bool)> {
        let scan = scan::read(&self.files);
        let key = ObjectKey::new("default", "g");
        let trust = serde_json::from_value(crate::cluster::dump::documents("t", TRUST).expect("yaml").remove(0))
            .expect("trust");
        let desired = self.sync.desired(&key, &trust, &scan);
        let row = |approval: DesiredApproval| {
            let device = approval
                .input
                .spec
                .as_ref()
                .ok()
                .and_then(|spec| spec.device.as_str().chars().next())
                .unwrap_or('?');
            (approval.input.key.name, device, approval.input.deleting)
        };
        desired.approvals.into_iter().map(row).collect()
    }
}

#[test]
fn an_approval_that_left_the_folder_is_revoked() {
    let folders = folders();
    folders.write("a.yaml", &approval("a", 'a'));
    assert_eq!(folders.desired(), [("a".to_owned(), 'a', false)]);
    std::fs::remove_file(folders.files.join("a.yaml")).expect("remove");
    assert_eq!(folders.desired(), [("a".to_owned(), 'a', true)]);
}

#[test]
fn a_file_that_cannot_be_read_is_no_deletion() {
    let folders = folders();
    folders.write("a.yaml", &approval("a", 'a'));
    folders.write("b.yaml", &approval("b", 'b'));
    folders.desired();
    for half_written in [
        "",
        "\n",
        "{apiVersion: gatewaytrust.io/v1al",
        "kind: [",
        "{kind: DeviceApproval, apiVersion: gatewaytrust.io/v1alpha1, metadata: {name: a}, spec: {device: 5}}",
    ] {
        folders.write("a.yaml", half_written);
        let rows = folders.desired();
        assert_eq!(
            rows,
            [("a".to_owned(), 'a', false), ("b".to_owned(), 'b', false)],
            "{half_written:?}"
        );
    }
    // Even one that goes while another cannot be read waits.
    std::fs::remove_file(folders.files.join("b.yaml")).expect("remove");
    assert_eq!(folders.desired().get(1), Some(&("b".to_owned(), 'b', false)));
    folders.write("a.yaml", &approval("a", 'a'));
    assert_eq!(
        folders.desired(),
        [("a".to_owned(), 'a', false), ("b".to_owned(), 'b', true)]
    );
}

#[test]
fn a_file_that_names_another_device_now_revokes_the_one_before() {
    let folders = folders();
    folders.write("a.yaml", &approval("a", 'a'));
    folders.desired();
    folders.write("a.yaml", &approval("a", 'b'));
    assert_eq!(
        folders.desired(),
        [("a".to_owned(), 'b', false), ("a~aaaaaaaaaaaa".to_owned(), 'a', true)]
    );
}

#[test]
fn two_files_with_one_name_are_said_and_revoke_nothing() {
    let folders = folders();
    folders.write("a.yaml", &approval("a", 'a'));
    folders.desired();
    folders.write("z.yaml", &approval("a", 'b'));
    let problems = scan::read(&folders.files).problems;
    assert_eq!(
        problems,
        ["z.yaml: DeviceApproval default/a stands in another file already; the first one counts"]
    );
    assert_eq!(folders.desired(), [("a".to_owned(), 'a', false)]);
}

#[test]
fn the_device_key_survives_and_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tempfile::tempdir().expect("folder");
    let key = ObjectKey::new("default", "g");
    let first = State::open(root.path())
        .expect("open")
        .identity(&key)
        .expect("new")
        .device_id();
    let state = State::open(root.path()).expect("open");
    assert_eq!(state.identity(&key).expect("stored").device_id(), first);
    let file = state.folder_of(&key).join("device.key");
    assert_eq!(
        std::fs::metadata(&file).expect("file").permissions().mode() & 0o777,
        0o600
    );
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("mode");
    assert!(
        matches!(state.identity(&key), Err(StateError::Exposed(..))),
        "a key that others can read is not used"
    );
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("mode");
    std::fs::write(&file, "damaged").expect("write");
    assert!(
        matches!(state.identity(&key), Err(StateError::Identity(..))),
        "a damaged key is not replaced silently"
    );
}

fn resolve(
    url: &str,
    allow: &[&str],
    environment: &[(&str, &str)],
) -> Result<crate::engine::front::ResolvedTarget, TargetError> {
    let options = Options {
        folder: PathBuf::new(),
        state_dir: PathBuf::new(),
        secrets_dir: None,
        allow_endpoints: allow.iter().map(ToString::to_string).collect(),
        allow_insecure_urls: false,
    };
    let spec = serde_json::from_value(serde_json::json!({"gateway": {"url": url}})).expect("spec");
    let mut trust = crate::api::validated::ValidatedTrust::parse(&spec).expect("valid");
    if let Some((name, _)) = environment.first() {
        trust.credential = Some(CredentialReference {
            kind: CredentialKind::Token,
            secret: SecretKeyReference {
                name: "any".to_owned(),
                key: name.trim_end_matches("_FILE").to_owned(),
            },
        });
    }
    let find = |name: &str| {
        environment
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned())
    };
    target::resolve(&options, &trust, &find)
}

#[test]
fn a_token_goes_to_loopback_or_where_it_may() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let token = [("TOKEN", "s3cret")];
    assert!(resolve("http://127.0.0.1:18789/", &[], &token).is_ok());
    assert!(resolve("http://[::1]:18789/", &[], &token).is_ok());
    assert!(matches!(
        resolve("http://gateway.example/", &["http://gateway.example"], &token),
        Err(TargetError::InsecureUrl(_))
    ));
    assert!(matches!(
        resolve("https://gateway.example/", &[], &token),
        Err(TargetError::EndpointNotAllowed { .. })
    ));
    assert!(matches!(
        resolve("https://gateway.example:8443/", &["https://gateway.example"], &token),
        Err(TargetError::EndpointNotAllowed { .. })
    ));
}

#[test]
fn a_missing_token_says_where_it_was_looked_for() {
    let error = |environment: &[(&str, &str)]| {
        resolve("http://127.0.0.1:1/", &[], environment)
            .expect_err("missing")
            .to_string()
    };
    insta::assert_snapshot!(error(&[]), @"spec.gateway.auth is left out, and neither OPENCLAW_GATEWAY_TOKEN (or OPENCLAW_GATEWAY_TOKEN_FILE) nor OPENCLAW_GATEWAY_PASSWORD is set. Name the Secret in spec.gateway.auth.tokenSecretRef.");
    insta::assert_snapshot!(error(&[("TOKEN", " ")]), @r#"Environment variable TOKEN has no key "value", or it is empty. Look: printenv TOKEN | wc -c"#);
    insta::assert_snapshot!(error(&[("TOKEN_FILE", "/nowhere/token")]), @"File /nowhere/token (TOKEN_FILE) does not exist. Create it, or correct the reference. Look: ls -l /nowhere/token");
}
