//! What every source file keeps: no unsafe code but in its corners, a size that a person can read, no
//! leftovers, no path of somebody's machine, no metric that the table does not know.

use std::collections::BTreeSet;

use gateway::telemetry::metrics::TABLE;

use crate::code::{code, line_of};
use crate::files::{File, none, packages, paths, root, texts};

/// The product's one FFI corner.
const RAW: &str = "hsm-adapter/src/worker/raw.rs";
/// The module that tests put before a token: an FFI border as a whole, and never shipped.
const SHIM: &str = "softhsm/shim/";
/// Its crate root: `forbid` would leave no room for the corner.
const RAW_ROOT: &str = "hsm-adapter/src/lib.rs";
const LINES_MAX: usize = 600;
const PREFIX: &str = "tollgate_";

/// A library or a program that does not shut unsafe code out.
fn open_root(file: &File) -> Option<String> {
    let lint = if file.path == RAW_ROOT { "deny" } else { "forbid" };
    let wanted = format!("#![{lint}(unsafe_code)]");
    let missing = !code(&file.text).text.contains(&wanted);
    (missing && !file.path.starts_with(SHIM)).then(|| format!("{}: lacks {wanted}", file.path))
}

/// Unsafe code outside its corner, or in it without its argument.
fn unsafe_code(file: &File) -> Vec<String> {
    let text = code(&file.text).text;
    let finding = |at: usize, why: &str| format!("{}:{}: {why}", file.path, line_of(&text, at));
    let mut found = Vec::new();
    let is_corner = file.path == RAW || file.path.starts_with(SHIM);
    for lint in ["allow(unsafe_code", "expect(unsafe_code"] {
        if !is_corner || lint.starts_with("allow") {
            found.extend(text.match_indices(lint).map(|(at, _)| finding(at, lint)));
        }
    }
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    for (at, _) in text.match_indices("unsafe ") {
        let rest = text[at + "unsafe ".len()..].trim_start();
        // `unsafe extern "C" fn(..)` as a type does nothing yet; its call stands in a block.
        let is_type = rest.starts_with("extern") && !rest.starts_with("extern \"\" {");
        let line = line_of(&text, at) - 1;
        if !is_corner {
            found.push(finding(at, "unsafe code outside worker/raw.rs and the shim"));
        } else if rest.starts_with("fn ") {
            let has_contract = doc(&lines, line).any(|line| *line == "/// # Safety");
            found.extend((!has_contract).then(|| finding(at, "no # Safety in its doc")));
        } else if !is_type && !is_argued(&lines, line) {
            found.push(finding(at, "no // SAFETY: before it"));
        }
    }
    found
}

/// The doc of what this line declares, from below.
fn doc<'l>(lines: &'l [&str], at: usize) -> impl Iterator<Item = &'l &'l str> {
    let above = lines[..at].iter().rev();
    above.skip_while(|line| line.starts_with("#[")).take_while(|line| line.starts_with("///"))
}

/// Whether the comment before the statement that this line belongs to argues safety.
fn is_argued(lines: &[&str], at: usize) -> bool {
    let mut above = lines[..at].iter().rev().skip_while(|line| {
        !line.is_empty() && !line.starts_with("//") && !line.ends_with([';', '{', '}'])
    });
    above
        .by_ref()
        .take_while(|line| line.starts_with("//"))
        .any(|line| line.starts_with("// SAFETY:"))
}

/// Work that was put off.
fn leftovers(file: &File) -> Vec<String> {
    let text = code(&file.text).text;
    let marks = ["todo!", "unimplemented!", "dbg!", "#[ignore"];
    let finding = |at: usize, mark: &str| format!("{}:{}: {mark}", file.path, line_of(&text, at));
    // Tests of another token, which have a make target of their own.
    let is_apart = file.path.ends_with("tests/system/opencryptoki.rs");
    marks
        .iter()
        .filter(|mark| !(is_apart && **mark == "#[ignore"))
        .flat_map(|mark| text.match_indices(mark))
        .map(|(at, mark)| finding(at, mark))
        .collect()
}

/// A path that exists on one machine only.
fn homes(file: &File) -> Vec<String> {
    // In pieces, so that this file does not find itself.
    let marks = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), ":\\Users"];
    let finding = |at: usize| format!("{}:{}: a home path", file.path, line_of(&file.text, at));
    marks.iter().flat_map(|mark| file.text.match_indices(mark)).map(|(at, _)| finding(at)).collect()
}

fn too_long(file: &File) -> Option<String> {
    let lines = file.text.lines().count();
    (lines > LINES_MAX).then(|| format!("{}: {lines} lines; split it", file.path))
}

/// Literals that name a metric which is not in the table.
fn unknown_metrics(file: &File, known: &BTreeSet<&str>) -> Vec<String> {
    let is_name = |text: &str| {
        let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
        // The bare prefix is what the table's macro puts before each name.
        text.len() > PREFIX.len() && text.starts_with(PREFIX) && text.bytes().all(plain)
    };
    let literals = code(&file.text).literals.into_iter();
    literals
        .filter(|(_, text)| is_name(text) && !known.contains(text.as_str()))
        .map(|(line, text)| format!("{}:{line}: {text} is not in the table", file.path))
        .collect()
}

fn rust() -> Vec<File> {
    texts("", &[".rs"])
}

fn sample(path: &str, text: &str) -> File {
    File { path: path.into(), text: text.into() }
}

#[test]
fn every_library_and_program_shuts_unsafe_code_out() {
    let mut roots = Vec::new();
    for package in packages() {
        let main = ["lib.rs", "main.rs"].map(|name| format!("{package}/src/{name}"));
        roots.extend(main.into_iter().filter(|path| root().join(path).exists()));
        let programs = format!("{package}/src/bin");
        if root().join(&programs).exists() {
            let mut programs = paths(&programs);
            // A program is src/bin/NAME.rs or src/bin/NAME/main.rs.
            programs.retain(|path| path.split('/').count() == 4 || path.ends_with("/main.rs"));
            roots.extend(programs);
        }
    }
    assert!(roots.len() >= packages().len(), "{roots:?}");

    let files = rust().into_iter().filter(|file| roots.contains(&file.path));
    let found: Vec<String> = files.filter_map(|file| open_root(&file)).collect();

    none(&found);
}

#[test]
fn an_open_crate_root_is_found() {
    let commented = sample("pki/src/lib.rs", "//! #![forbid(unsafe_code)]\n");
    let softer = sample("pki/src/lib.rs", "#![deny(unsafe_code)]");
    let corner = sample(RAW_ROOT, "#![deny(unsafe_code)]");

    assert!(open_root(&commented).is_some() && open_root(&softer).is_some());
    assert_eq!(open_root(&corner), None);
}

#[test]
fn unsafe_code_has_its_corners_and_an_argument() {
    let files = rust();

    let found: Vec<String> = files.iter().flat_map(unsafe_code).collect();

    none(&found);
}

#[test]
fn unsafe_code_elsewhere_or_without_an_argument_is_found() {
    let block = "// SAFETY: so.\nlet a =\n    unsafe { b() };\n";
    for (path, text, findings) in [
        (RAW, block, 0),
        (RAW, "type A = unsafe extern \"C\" fn();", 0),
        (RAW, "// It is safe.\nlet a = unsafe { b() };", 1),
        (RAW, "// SAFETY: so.\nlet c = d;\nlet a = unsafe { b() };", 1),
        (RAW, "unsafe extern \"C\" {\n    fn a();\n}", 1),
        (RAW, "#![allow(unsafe_code)]", 1),
        ("softhsm/shim/src/raw.rs", block, 0),
        ("softhsm/shim/src/raw.rs", "// It is safe.\nlet a = unsafe { b() };", 1),
        ("softhsm/shim/src/raw.rs", "/// A.\n/// # Safety\n/// B.\nunsafe fn a() {}", 0),
        ("softhsm/shim/src/raw.rs", "/// A.\nunsafe fn a() {}", 1),
        ("softhsm/src/plan.rs", block, 1),
        ("pki/src/leaf.rs", block, 1),
        ("pki/src/leaf.rs", "#[expect(unsafe_code, reason = \"no\")]", 1),
        ("pki/src/leaf.rs", "// unsafe { a }\nconst B: &str = \"unsafe { c }\";", 0),
    ] {
        let found = unsafe_code(&sample(path, text));

        assert_eq!(found.len(), findings, "{path} with {text:?}: {found:?}");
    }
}

#[test]
fn no_work_was_put_off() {
    let files = rust();

    let found: Vec<String> = files.iter().flat_map(leftovers).collect();

    none(&found);
}

#[test]
fn work_that_was_put_off_is_found() {
    let text =
        "fn a() { todo!() }\n#[ignore = \"slow\"]\nfn b() { unimplemented!(\"c\") } // todo!\n";

    let found = leftovers(&sample("a.rs", text));

    assert_eq!(found, ["a.rs:1: todo!", "a.rs:3: unimplemented!", "a.rs:2: #[ignore"]);
}

#[test]
fn no_file_names_a_home() {
    let kinds =
        [".rs", ".toml", ".md", ".sh", ".sql", ".json", ".yml", ".yaml", "Makefile", "Dockerfile"];
    let files = texts("", &kinds);

    let found: Vec<String> = files.iter().flat_map(homes).collect();

    none(&found);
}

#[test]
fn a_home_is_found_in_comments_and_literals_too() {
    let text = format!("// {0}/me/x\nlet a = \"{0}/me/y\";", concat!("/ho", "me"));

    let found = homes(&sample("a.rs", &text));

    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn no_source_file_is_too_long_to_read() {
    let files = texts("", &[".rs", ".sql", ".sh"]);

    let found: Vec<String> = files.iter().filter_map(too_long).collect();

    none(&found);
}

#[test]
fn a_file_of_601_lines_is_too_long() {
    let longest = sample("a.rs", &"a\n".repeat(LINES_MAX));
    let longer = sample("a.rs", &"a\n".repeat(LINES_MAX + 1));

    assert_eq!(too_long(&longest), None);
    assert_eq!(too_long(&longer).unwrap(), "a.rs: 601 lines; split it");
}

#[test]
fn every_metric_that_the_gateway_names_is_in_its_table() {
    let known = TABLE.iter().map(|metric| metric.name).collect();
    let files = texts("gateway/src", &[".rs"]);

    let found: Vec<String> = files.iter().flat_map(|file| unknown_metrics(file, &known)).collect();

    none(&found);
}

#[test]
fn a_metric_that_the_table_does_not_know_is_found() {
    let known = BTreeSet::from(["tollgate_requests_total"]);
    let text =
        "counter!(\"tollgate_requests_total\");\ncounter!(\"tollgate_request_total\", \"a\" => b);";

    let found = unknown_metrics(&sample("a.rs", text), &known);

    assert_eq!(found, ["a.rs:2: tollgate_request_total is not in the table"]);
}
