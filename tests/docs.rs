//! What the documents refer to is there.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use giantnetes::api::Reason;

/// All files below a folder of the repository whose names end so, and nothing that was built.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    walk(&path, ending, found);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), ending, &mut found);
    found
}

/// Text without what is code: nobody follows a link there.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let lines = text.lines().filter(|line| {
        fenced ^= line.trim_start().starts_with("```");
        !fenced && !line.starts_with("    ")
    });
    lines.map(|line| line.split('`').step_by(2).collect::<Vec<_>>().join("`")).collect::<Vec<_>>().join("\n")
}

/// Targets of links: what follows `](` up to the closing parenthesis.
fn links(text: &str) -> Vec<String> {
    let parts: Vec<_> = prose(text).split("](").skip(1).map(str::to_owned).collect();
    parts.iter().filter_map(|part| part.split_once(')')).map(|(link, _)| link.replace('\n', "")).collect()
}

/// Anchors of a document: its headings, as forges make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let (mut broken, mut checked) = (Vec::new(), 0);
    for document in files("", ".md") {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            checked += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() { document.clone() } else { document.parent().unwrap().join(path) };
            let leads = target.exists()
                && (anchor.is_empty() || anchors(&fs::read_to_string(&target).unwrap()).contains(anchor));
            if !leads {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(checked > 40, "only {checked} links were checked");
}

/// Names of our own labels, annotations, finalizers and resources that are constants of the sources.
fn names_of_ours() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for source in files("src", ".rs") {
        let text = fs::read_to_string(source).unwrap();
        for constant in text.split("&str =").skip(1) {
            let value = constant.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
            // A selector is a label and its value.
            let name = value.and_then(|value| value.split('=').next());
            names.extend(name.filter(|name| name.starts_with("giantnetes.io/")).map(str::to_owned));
        }
    }
    names
}

#[test]
fn the_reference_lacks_no_name_and_no_reason() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    let reference = fs::read_to_string(path).unwrap();
    let names = names_of_ours();
    assert!(names.len() >= 24, "only {} names were found: {names:?}", names.len());
    let reasons: Vec<_> = Reason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    assert!(reasons.len() >= 19, "only {} reasons were found: {reasons:?}", reasons.len());
    let is_told = |word: &str| reference.contains(&format!("`{word}`"));
    let lacks: Vec<_> = names.iter().chain(&reasons).filter(|word| !is_told(word)).collect();
    assert!(lacks.is_empty(), "docs/reference.md lacks {lacks:?}");
}

#[test]
fn every_dashboard_has_its_picture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shown = links(&fs::read_to_string(root.join("docs/operations.md")).unwrap());
    let mut boards = 0;
    for entry in fs::read_dir(root.join("charts/giantnetes/files/dashboards")).unwrap() {
        let picture = entry.unwrap().path().with_extension("svg");
        let name = format!("pictures/{}", picture.file_name().unwrap().to_string_lossy());
        assert!(root.join("docs").join(&name).is_file() && shown.contains(&name), "docs/operations.md lacks {name}");
        boards += 1;
    }
    assert!(boards >= 4, "only {boards} dashboards were found");
}

#[test]
fn the_quick_start_is_quick() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/quick-start.md")).unwrap();
    let words = text.split_whitespace().count();
    assert!(words <= 250, "it has {words} words");
}

/// The part of a document below a heading.
fn section(document: &str, heading: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(document)).unwrap();
    let (_, rest) =
        text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("{document} has no {heading}"));
    rest.split("\n## ").next().unwrap().to_owned()
}

/// The version that a product of e2e/tools is pinned to: what its product.sh says, or what its go.mod requires.
fn pinned(product: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/tools").join(product);
    let of = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let told = of("product.sh");
    let value = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    value("version=").unwrap_or_else(|| {
        let module = value("module=").unwrap();
        let requires = |line: &str| {
            let mut words = line.trim().trim_start_matches("require ").split(' ');
            (words.next() == Some(&module)).then(|| words.next().unwrap_or_default().to_owned())
        };
        of("go.mod").lines().find_map(requires).unwrap_or_else(|| panic!("{product} requires no {module}"))
    })
}

#[test]
fn the_versions_are_those_that_are_pinned() {
    let told = section("reference.md", "Versions");
    let products = [
        ("kubernetes", "Kubernetes of guests"),
        ("kubernetes-1.36.1", "Kubernetes of guests"),
        ("kubernetes-1.37.2", "Kubernetes of guests"),
        ("kubernetes", "management cluster"),
        ("etcd", "in a node: etcd"),
        ("cni", "in a node: etcd"),
        ("calico", "in a node: Calico"),
        ("coredns", "in a node: Calico"),
        ("traefik", "in a node: Calico"),
        ("flannel", "beside it: flanneld"),
        ("etcd", "flannel's etcd"),
        ("helm", "helm, Vault"),
        ("vault", "helm, Vault"),
        ("prometheus", "helm, Vault"),
        ("gateway-api", "helm, Vault"),
    ];
    for (product, row) in products {
        let row = told.lines().find(|line| line.starts_with(&format!("| {row}"))).unwrap_or_else(|| panic!("no {row}"));
        let version = pinned(product);
        assert!(row.contains(&version), "{product} is {version}, and docs/reference.md says: {row}");
    }
    let least = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/giantnetes/Chart.yaml")).unwrap();
    let least = least.lines().find_map(|line| line.strip_prefix("kubeVersion: \">=")).unwrap();
    let least = least.split(".0-0").next().unwrap();
    assert!(told.contains(&format!("the chart takes {least} and newer")), "the chart takes {least}");
}

#[test]
fn the_images_of_nodes_are_those_that_are_built() {
    let told = section("reference.md", "Images to mirror");
    let build = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("images/build.sh")).unwrap();
    let list = build.lines().find_map(|line| line.strip_prefix("preloaded=(")).unwrap().trim_end_matches(')');
    let images: Vec<_> = list.split(' ').collect();
    assert!(images.len() >= 5, "{images:?}");
    for image in images {
        let tag = if ["pause", "toolbox"].contains(&image) { "1".to_owned() } else { pinned(image) };
        let whole = format!("`giantnetes/{image}:{tag}`");
        assert!(told.contains(&whole), "docs/reference.md lacks {whole}");
    }
}

/// Numbers behind these words in the chart's templates, but for those that a value gives.
fn ports_of_the_chart() -> BTreeSet<u16> {
    let mut found = BTreeSet::new();
    for template in files("charts/giantnetes/templates", ".yaml") {
        for line in fs::read_to_string(template).unwrap().lines() {
            for word in ["containerPort: ", "port: "] {
                let digits = line
                    .split(word)
                    .skip(1)
                    .map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
                found.extend(digits.filter_map(|digits| digits.parse::<u16>().ok()));
            }
        }
    }
    found
}

#[test]
fn no_port_of_the_chart_is_missing() {
    let told = section("reference.md", "Ports");
    let ports = ports_of_the_chart();
    assert!(ports.contains(&8080) && ports.contains(&2379), "{ports:?}");
    let lacking: Vec<_> = ports.iter().filter(|port| !told.contains(&format!("{port}"))).collect();
    assert!(lacking.is_empty(), "docs/reference.md tells nothing of {lacking:?}");
}
