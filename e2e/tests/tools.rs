//! The script that builds third-party servers, on a product of a few lines: what is built stays, progress is shown, and
//! a failure names the product and the reason. Needs Go, and reaches nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use lab::command::Run;

/// The script with products of the test beside it, and a cache of its own.
struct Tools(PathBuf);

impl Tools {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("giantnetes-tools-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::copy(support::root().join("e2e/tools/build.sh"), folder.join("build.sh")).unwrap();
        Self(folder)
    }

    /// Adds a product whose one program is this.
    fn product(&self, name: &str, main: &str) {
        let folder = self.0.join(name);
        fs::create_dir(&folder).unwrap();
        for (file, content) in [
            ("go.mod", format!("module {name}\n\ngo 1.21\n")),
            ("go.sum", String::new()),
            ("main.go", format!("package main\n\nfunc main() {{ {main} }}\n")),
            ("product.sh", format!("version=v1\nbinaries=({name}-server=.)\n")),
        ] {
            fs::write(folder.join(file), content).unwrap();
        }
    }

    fn build(&self, args: &[&str]) -> Result<String> {
        let cache = format!("GIANTNETES_CACHE={}", self.0.join("cache").display());
        let script = self.0.join("build.sh");
        // Go's own packages are compiled, too.
        Run::new("env").args([cache]).arg(script).args(args.iter().copied()).timeout(Duration::from_secs(300)).output()
    }

    /// Where a product is, or will be.
    fn folder(&self, product: &str) -> PathBuf {
        self.build(&["--dir", product]).unwrap().trim().into()
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_is_built_stays_and_what_fails_says_why() {
    let tools = Tools::new();
    tools.product("broken", "nowhere()");
    tools.product("dummy", "println(\"hello\")");

    // First, so that what fails is seen to stay out of the way of what does not.
    let error = tools.build(&["broken"]).unwrap_err().to_string();
    assert!(error.contains("undefined: nowhere"), "{error}");
    assert!(error.contains("tools: broken: building broken-server (. v1) failed; the reason is above"), "{error}");
    assert!(!tools.folder("broken").exists(), "something passes for built that is not");

    let said = tools.build(&["dummy"]).unwrap();
    let lines: Vec<_> = said.lines().collect();
    let [begins, ends] = lines[..] else { panic!("{said}") };
    assert_eq!(begins, "tools: dummy v1: building dummy-server");
    assert!(ends.starts_with("tools: dummy v1: dummy-server in ") && ends.ends_with(" s"), "{ends}");
    assert!(Run::new(tools.folder("dummy").join("dummy-server")).succeeds(), "it does not run");

    assert_eq!(tools.build(&["dummy"]).unwrap(), "tools: dummy v1 is in the cache\n");

    // What is built on demand is left out where nobody names it, so that this run meets nothing that fails.
    fs::write(tools.0.join("broken/on-demand"), "a reason").unwrap();
    assert_eq!(tools.build(&[]).unwrap(), "tools: dummy v1 is in the cache\n");

    let error = tools.build(&["--with", "broken"]).unwrap_err().to_string();
    assert!(error.contains("tools: broken: building broken-server"), "{error}");

    let error = tools.build(&["nothing"]).unwrap_err().to_string();
    assert!(error.ends_with("tools: there is no product nothing; known: broken dummy"), "{error}");
}
