//! The layers that docs/architecture.md promises, read off the sources.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    assert!(found.len() > 30, "the sources are not where they were");
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            let text = fs::read_to_string(&path).unwrap();
            // Unit tests may do what they like, also where they have a file of their own.
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            let is_product = !name.ends_with("/tests.rs");
            (name, if is_product { product.to_owned() } else { String::new() })
        })
        .collect()
}

#[test]
fn what_decides_is_pure() {
    let impure = [
        "Api<",
        "Api::",
        "Client::",
        "&Client",
        "client: Client",
        "tokio",
        "SystemTime",
        "Instant",
        "Timestamp::now",
        "Zoned::now",
        "rand::",
        "std::fs",
        "std::env",
        "std::process",
        "std::net::TcpListener",
        "std::net::TcpStream",
        "async fn",
        ".await",
    ];
    let mut checked = 0;
    for (name, text) in sources() {
        let others = [
            "api/",
            "aws/calls/failure.rs",
            "aws/blame.rs",
            "aws/calls/pace.rs",
            "aws/calls/xml.rs",
            "aws/change_set.rs",
            "aws/credentials.rs",
            "aws/deploy/record.rs",
            "aws/driver/",
            "aws/identity.rs",
            "aws/nodes.rs",
            "aws/progress.rs",
            "aws/status.rs",
            "aws/tags.rs",
            "aws/template/",
            "aws/user_data.rs",
            "cluster/valid",
            "flannel/lease.rs",
            "isolation/narrow.rs",
            "network/claims.rs",
            "network/policies.rs",
            "network/underlay.rs",
            "node_agent/config.rs",
            "node_agent/sign.rs",
            "node_config/",
            "pki/generations.rs",
            "pki/leaf.rs",
            "pki/rotation/",
            "pki/turnover.rs",
        ];
        let decides = name.ends_with("/plan.rs") || others.iter().any(|place| name.starts_with(place));
        // The subcommand of that name prints plans; it does not make them.
        if !decides || name.starts_with("cli/") {
            continue;
        }
        checked += 1;
        for word in impure {
            assert!(!text.contains(word), "src/{name} decides, so it may not use {word}");
        }
    }
    assert!(checked > 20, "only {checked} files were checked");
}

#[test]
fn a_spec_is_read_where_it_is_judged() {
    // A pause holds for a Cluster that breaks rules, too, and `describe` shows what its user wrote.
    let judges = ["api/", "cluster/valid", "context.rs", "cli/describe/tree.rs"];
    for (name, text) in sources() {
        let reads = text.contains("cluster.spec.") && !judges.iter().any(|place| name.starts_with(place));
        assert!(!reads, "src/{name} reads a raw spec: take it from `Valid`");
    }
}

#[test]
fn the_operator_kit_knows_nothing_of_clusters() {
    for (name, text) in sources() {
        if name.starts_with("runtime/") {
            for (number, line) in text.lines().enumerate() {
                let foreign = line.contains("crate::") && !line.contains("crate::runtime");
                assert!(!foreign, "src/{name}:{}: {line}", number + 1);
            }
        }
    }
}

#[test]
fn a_file_holds_one_idea() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= 450, "src/{name} has {lines} lines");
    }
}

#[test]
fn no_source_unwraps() {
    for (name, text) in sources() {
        for word in [".unwrap()", "panic!(", "todo!(", "unimplemented!("] {
            assert!(name == "testing.rs" || !text.contains(word), "src/{name} uses {word}");
        }
    }
}

#[test]
fn the_example_operator_is_small_and_uses_the_kit_alone() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/welcome.rs");
    let text = fs::read_to_string(path).unwrap();
    assert!(text.lines().count() <= 100, "{} lines", text.lines().count());
    let foreign: Vec<_> = text.lines().filter(|line| line.contains("giantnetes::")).collect();
    assert!(foreign.iter().all(|line| line.contains("giantnetes::runtime")), "{foreign:?}");
}
