//! `compliance/controls/`: what it names is there. A requirement has a behaviour, and modules, tests, records
//! and evidence that exist.

use std::collections::BTreeSet;

use compliance::{CONTROLS, EventType};
use gateway::check::evidence;
use serde::Deserialize;

use crate::code::code;
use crate::files::{none, root};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Controls {
    standard: String,
    version: String,
    control: Vec<Control>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Control {
    id: String,
    title: String,
    status: Status,
    behaviour: String,
    modules: Vec<String>,
    /// `<file>::<function>`.
    tests: Vec<String>,
    records: Vec<String>,
    evidence: Vec<String>,
    #[serde(rename = "responsibility")]
    _responsibility: Responsibility,
    /// What it does not show.
    limits: Option<String>,
    /// Why no test shows it.
    without_tests: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    Built,
    Partial,
    NotBuilt,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Responsibility {
    Gateway,
    Hsm,
    Operator,
    Shared,
}

/// What is wrong with one file of controls.
fn wrong(name: &str, text: &str) -> Vec<String> {
    let controls = match toml::from_str::<Controls>(text) {
        Ok(controls) => controls,
        Err(error) => return vec![format!("{name}: {error}")],
    };
    let mut found = Vec::new();
    let file = format!("{} {}", controls.standard, controls.version);
    if name != file.to_lowercase().replace(' ', "-") {
        found.push(format!("{name} is about {file}"));
    }
    let mut ids = BTreeSet::new();
    for control in &controls.control {
        let told = |what: String| format!("{name} {}: {what}", control.id);
        if !ids.insert(&control.id) {
            found.push(told("stands twice".into()));
        }
        found.extend(unfounded(control).into_iter().map(told));
    }
    found
}

fn unfounded(control: &Control) -> Vec<String> {
    let Control { id, title, status, behaviour, modules, tests, records, evidence, .. } = control;
    let mut found = Vec::new();
    if [id, title, behaviour].iter().any(|text| text.trim().is_empty()) {
        found.push("an empty text".into());
    }
    let is_file = |path: &str| !path.contains("..") && root().join(path).is_file();
    let absent = modules.iter().filter(|path| !is_file(path));
    found.extend(absent.map(|path| format!("no module {path}")));
    found.extend(tests.iter().filter(|test| !is_test(test)).map(|test| format!("no test {test}")));
    let is_event = |name: &str| EventType::ALL.iter().any(|event| event.as_str() == name);
    let unknown = records.iter().filter(|name| !is_event(name));
    found.extend(unknown.map(|name| format!("no event {name}")));
    let unwritten = evidence.iter().filter(|name| !evidence::FILES.contains(&name.as_str()));
    found.extend(unwritten.map(|name| format!("no evidence {name}")));
    if tests.is_empty() == control.without_tests.is_none() {
        found.push("has either tests, or without_tests that says why not".into());
    }
    if *status == Status::Partial && control.limits.is_none() {
        found.push("is partial and has no limits that say what is missing".into());
    }
    if *status != Status::NotBuilt && modules.is_empty() {
        found.push("is built in no module".into());
    }
    found
}

/// Whether the file's code has a function of this name that is marked as a test.
fn is_test(test: &str) -> bool {
    let Some((path, function)) = test.rsplit_once("::") else { return false };
    let Ok(text) = std::fs::read_to_string(root().join(path)) else { return false };
    let text = code(&text).text;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_it = |line: &str| {
        let rest = line.split_once("fn ").map_or("", |(_, rest)| rest);
        rest.strip_prefix(function).is_some_and(|rest| rest.starts_with(['(', '<']))
    };
    let Some(at) = lines.iter().position(|line| is_it(line)) else { return false };
    let mut attributes =
        lines[..at].iter().rev().take_while(|line| line.is_empty() || line.starts_with("#["));
    // Tests of the store run on both databases: a macro marks them.
    path.starts_with("gateway/src/store/tests/") || attributes.any(|line| line.contains("test"))
}

#[test]
fn every_control_names_what_is_there() {
    let found: Vec<String> = CONTROLS.iter().flat_map(|(name, text)| wrong(name, text)).collect();

    none(&found);
}

#[test]
fn each_thing_that_a_control_may_not_name_is_found() {
    let good = r#"
        standard = "PCI DSS"
        version = "4.0.1"
        [[control]]
        id = "1.4"
        title = "t"
        status = "built"
        behaviour = "b"
        modules = ["gateway/src/app.rs"]
        tests = ["tests/tests/tidy/controls.rs::each_thing_that_a_control_may_not_name_is_found"]
        records = ["audit.start"]
        evidence = ["keys.json"]
        responsibility = "shared"
    "#;
    let twice = format!("{good}{}", &good[good.find("[[control]]").unwrap()..]);

    none(&wrong("pci-dss-4.0.1", good));
    assert_eq!(wrong("pci-dss-4.0", good).len(), 1);
    assert_eq!(wrong("pci-dss-4.0.1", &twice), ["pci-dss-4.0.1 1.4: stands twice"]);
    for (this, that) in [
        ("gateway/src/app.rs", "gateway/src/none.rs"),
        ("_is_found", "_is_foun"),
        ("::each_thing_that_a_control_may_not_name_is_found", "::is_test"),
        ("controls.rs::", "none.rs::"),
        ("audit.start", "audit.begin"),
        ("keys.json", "manifest.json"),
        ("\"shared\"", "\"nobody\""),
        ("\"built\"", "\"partial\""),
        ("\"built\"", "\"done\""),
        ("title = \"t\"", "title = \"\""),
        (
            "[\"tests/tests/tidy/controls.rs::each_thing_that_a_control_may_not_name_is_found\"]",
            "[]",
        ),
        ("id = \"1.4\"", "id = \"1.4\"\nmore = 1"),
    ] {
        let bad = good.replace(this, that);
        assert_eq!(wrong("pci-dss-4.0.1", &bad).len(), 1, "{that}");
    }
}
