//! `lab status`: what of the lab runs.

use anyhow::Result;

use crate::Lab;
use crate::paths::Paths;
use crate::process::{Record, records};

/// The state of a server that is as it should be.
const RUNS: &str = "runs";

/// Prints a line per server and the nodes. Says whether the lab is healthy.
///
/// # Errors
/// If the machine does not tell where the lab's files are.
pub fn status() -> Result<bool> {
    let paths = Paths::of_machine()?;
    let Some(lab) = Lab::found() else {
        println!("no lab is set up; `lab up` sets one up");
        return Ok(false);
    };
    let mut healthy = true;
    println!("{:<26} {:>8}  STATE", "SERVER", "PID");
    for record in records(&paths) {
        let state = state(&lab, &record);
        healthy &= state == RUNS;
        println!("{:<26} {:>8}  {state}", record.name, record.pid);
    }
    println!();
    match lab.kubectl(&["get", "nodes", "--output=wide"]) {
        Ok(nodes) => print!("{nodes}"),
        Err(error) => {
            healthy = false;
            println!("the API server does not answer: {error:#}");
        }
    }
    if !healthy {
        println!("\n`lab up` starts what has ended and opens what is sealed; logs are in {}", paths.logs().display());
    }
    Ok(healthy)
}

/// What a server does. Vault may run and serve nobody.
fn state(lab: &Lab, record: &Record) -> String {
    if !record.alive() {
        return "ended".into();
    }
    let vault = lab.vault();
    if record.name != vault.server().name {
        return RUNS.into();
    }
    match vault.seal_status() {
        Ok(seal) if seal.sealed => "runs, and is sealed".into(),
        Ok(_) => RUNS.into(),
        Err(error) => format!("runs, and does not answer: {error:#}"),
    }
}
