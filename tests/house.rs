//! What the house promises of itself: pure rooms, a page for every reason, generated files that are up to date.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use gatewaytrust::api::{Reason, schema};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The deciding rooms reach for nothing: no API client, no runtime, no clock, no log, no file, no socket.
#[test]
fn the_pure_rooms_are_pure() {
    let forbidden = [
        "use kube",
        "kube::",
        "use tokio",
        "tokio::",
        "use tracing",
        "tracing::",
        "reqwest",
        "SystemTime",
        "Instant::now",
        "Timestamp::now",
        "std::fs",
        "std::env",
        "std::net::Tcp",
        "std::net::Udp",
        "HashMap",
        "HashSet",
    ];
    for folder in ["src/cidr", "src/discovery", "src/plan"] {
        for file in files(folder, "rs") {
            let text = std::fs::read_to_string(&file).unwrap();
            for word in forbidden {
                assert!(!text.contains(word), "{} holds {word:?}", file.display());
            }
        }
    }
}

#[test]
fn every_reason_has_a_page_and_every_page_a_reason() {
    let index = std::fs::read_to_string(root().join("docs/reasons/README.md")).unwrap();
    for reason in Reason::ALL {
        let page = root().join(format!("docs/reasons/{reason}.md"));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        assert!(text.len() > 300, "{} says too little", page.display());
        assert!(
            index.contains(&format!("({reason}.md)")),
            "{reason} is not in the index"
        );
        assert!(!reason.meaning().is_empty());
    }
    for page in files("docs/reasons", "md") {
        let name = page.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            name == "README" || Reason::ALL.iter().any(|reason| reason.as_str() == name),
            "{} is of no reason",
            page.display()
        );
    }
}

/// Every reason is used by some code besides its own definition: none is promised and never given.
#[test]
fn every_reason_is_given_somewhere() {
    let code: String = files("src", "rs")
        .iter()
        .filter(|file| !file.ends_with("api/condition.rs"))
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    for reason in Reason::ALL {
        assert!(code.contains(&format!("Reason::{reason}")), "{reason} is given nowhere");
    }
}

#[test]
fn the_committed_crds_are_those_of_the_types() {
    let committed = std::fs::read_to_string(root().join("crds/gatewaytrust.io.yaml")).unwrap();
    let written: Vec<serde_json::Value> = serde_saphyr::from_multiple(&committed).unwrap();
    assert!(
        written == schema::crds().unwrap(),
        "crds/gatewaytrust.io.yaml is not what the types say; run: make crds"
    );
}

/// CEL's cost limit and the API server's memory need bounds on everything that a person can write.
#[test]
fn every_list_and_string_of_the_specs_is_bounded() {
    fn walk(path: &str, schema: &serde_json::Value, unbounded: &mut Vec<String>) {
        let kind = schema["type"].as_str().unwrap_or_default();
        let closed = schema.get("enum").is_some();
        if kind == "array" && schema.get("maxItems").is_none()
            || kind == "string" && schema.get("maxLength").is_none() && !closed
        {
            unbounded.push(path.to_owned());
        }
        assert!(
            path.is_empty() || schema.get("description").is_some() || path.ends_with("[]") || path.ends_with("{}"),
            "{path} is not described"
        );
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), inner, unbounded);
        }
        if schema["items"].is_object() {
            walk(&format!("{path}[]"), &schema["items"], unbounded);
        }
    }
    for crd in schema::crds().unwrap() {
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut unbounded = Vec::new();
        walk("", spec, &mut unbounded);
        assert_eq!(unbounded, Vec::<String>::new(), "{}", crd["metadata"]["name"]);
    }
}

/// No page links to a page that is not there.
#[test]
fn links_between_pages_lead_somewhere() {
    let mut pages = files("docs", "md");
    pages.extend(files("examples", "md"));
    pages.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name)));
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            assert!(
                page.parent().unwrap().join(target).exists(),
                "{} links to {target}",
                page.display()
            );
        }
    }
}

/// Every example is valid for the program itself, and refers to a gateway that is there.
#[test]
fn the_examples_are_valid() {
    for folder in ["examples/quickstart", "examples/kubernetes"] {
        let plan = std::process::Command::new(env!("CARGO_BIN_EXE_gatewaytrust"))
            .args(["plan", "-o", "json", "-f", folder])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(
            plan.status.success(),
            "{folder}: {}",
            String::from_utf8_lossy(&plan.stderr)
        );
        let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
        assert_eq!(plan["orphans"], serde_json::json!([]), "{folder}");
        assert!(!plan["gateways"].as_array().unwrap().is_empty(), "{folder}");
    }
}

/// The chart has the same CRDs, and exactly the rights that the end-to-end tests run with.
#[test]
fn the_chart_has_the_crds_and_the_rights_that_are_tested() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    assert!(
        read("charts/gatewaytrust/crds/gatewaytrust.io.yaml") == read("crds/gatewaytrust.io.yaml"),
        "run: make crds"
    );
    let rules = |text: String| {
        text.split_once("\nrules:\n")
            .unwrap()
            .1
            .split("\n---")
            .next()
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        rules(read("charts/gatewaytrust/templates/rbac.yaml")),
        rules(read("deploy/rbac.yaml"))
    );
}
