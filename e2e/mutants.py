#!/usr/bin/env python3
"""Breaks the product on purpose, one rule at a time, and expects a test to notice.

    mutants.py            every mutant
    mutants.py NAME…      these only
    mutants.py --table    docs/mutants.md, from the list below

Works in a copy of what is committed, with a build folder of its own. A mutant that does not apply any more is an error, as
is one that no test notices.
"""
import os, pathlib, shutil, subprocess, sys, time

UNIT = ["cargo", "test", "-q", "-p", "giantnetes", "--lib", "--"]
# With the product's binary built first, since these tests start it.
END_TO_END = ["cargo", "test", "-q", "-p", "giantnetes-e2e", "--test"]
CONTROLLER = END_TO_END + ["controller", "--", "--test-threads=1"]
ADMISSION = END_TO_END + ["admission", "--"]
OVERLAY = END_TO_END + ["overlay", "--"]
VAULT = END_TO_END + ["vault", "--", "--test-threads=1"]

# name, kind of rule, what is broken, file, old text, new text, test that must fail
MUTANTS = [
    ("cel", "admission", "the API server takes two control-plane nodes",
     "manifests/crds/giantnetes.io.yaml", "rule: self in [1, 3, 5]", "rule: self in [1, 2, 3, 5]", ADMISSION),
    ("immutable", "admission", "the network of pods may change",
     "manifests/crds/giantnetes.io.yaml", "== (has(oldSelf.kubernetes) && has(oldSelf.kubernetes.podCIDR)", "!= (has(oldSelf.kubernetes) && has(oldSelf.kubernetes.podCIDR)", ADMISSION),
    ("deletion-protection", "admission", "the policy lets every deletion pass",
     "charts/giantnetes/templates/deletion-protection.yaml", '"!(has(oldObject.spec.deletionProtection) && oldObject.spec.deletionProtection)"', '"true"', ADMISSION),
    ("ranges", "validation", "ranges may overlap",
     "src/cluster/valid/network.rs", "if overlaps(*range, *other) {", "if false && overlaps(*range, *other) {", UNIT),
    ("underlay", "validation", "an overlay may cover the management cluster's pods",
     "src/network/underlay.rs", "part.range.contains(&overlay) || overlay.contains(&part.range)", "part.range.contains(&overlay) && overlay.contains(&part.range)", UNIT + ["underlay"]),
    ("vni", "claims", "a VNI is taken though somebody holds it",
     "src/network/claims.rs", "Some(_) => None,", "Some(_) => Some(VniChoice::Claim(vni)),", UNIT + ["network::claims"]),
    ("quarantine", "claims", "a released VNI is still its former Cluster's",
     "src/network/claims.rs", "match free_at(claim, quarantine) {", "match free_at(claim, quarantine).filter(|_| false) {", UNIT + ["network::claims"]),
    ("root", "roots", "roots that are recorded and gone are made anew",
     "src/pki/plan.rs", "None if world.records.is_empty() && !world.has_issued() && !world.has_roots() => {", "None => {", UNIT + ["pki"]),
    ("rotation-trust", "rotation", "servers show what new authorities signed before users had their time",
     "src/pki/rotation/phase.rs", "let from = if leaf.usage == Usage::Server { Phase::Serve } else { Phase::Reissue };", "let from = Phase::Reissue;", UNIT + ["pki::rotation"]),
    ("rotation-quorum", "rotation", "several members of etcd are started anew at once",
     "src/pki/rotation/mod.rs", "let turns = member.control_plane && is_turn(next, *alone);", "let turns = false && member.control_plane && is_turn(next, *alone);", UNIT + ["pki::rotation"]),
    ("rotation-seen", "rotation", "a stage begins before every node was seen in the one before",
     "src/pki/rotation/mod.rs", "if decision.waits.is_some() {\n            return decision;\n        }", "", UNIT + ["pki::rotation"]),
    ("key-dropped", "rotation", "an encryption key is dropped while something is stored with it",
     "src/pki/keys/decide.rs", "Some(stored) if stored.others > 0 => {", "Some(stored) if stored.others > 0 && stored.all == 0 => {", UNIT + ["pki::keys"]),
    ("key-deleted", "rotation", "an encryption key is deleted though it is not known what is stored with it",
     "src/pki/keys/decide.rs", "let uses = low >= Phase::Reissue;", "let uses = low == Phase::Reissue;", UNIT + ["pki::keys"]),
    ("key-turns", "rotation", "several API servers are started anew for a key at once",
     "src/pki/keys/decide.rs", "Some(_) => member.lacks.as_ref().map(|lack| lack.what.clone()),", "Some(_) => None,", UNIT + ["pki::keys"]),
    ("key-looked", "rotation", "a look into etcd leaves Secrets out that lie under a key whose name begins like the new one's",
     "src/supervisor/keys.rs", 'format!("k8s:enc:secretbox:v1:{key}:")', 'format!("k8s:enc:secretbox:v1:{key}")', UNIT + ["supervisor::keys"]),
    ("rotation-shape", "rotation", "etcd of who turned alone is started anew because others join",
     "src/pki/turnover.rs", "let alone = has_turned_alone || cluster.has_one_master();", "let alone = has_turned_alone && false || cluster.has_one_master();", UNIT + ["pki::turnover"]),
    ("rotation-secret", "rotation", "members of etcd whose Secrets were deleted are all started anew",
     "src/pki/rotation/mod.rs", "decision.held.insert(member.node.clone());", "", UNIT + ["pki::rotation"]),
    ("rotation-storm", "rotation", "all kubelets of a guest are started anew at once",
     "src/pki/rotation/mod.rs", "at_a_time.saturating_sub(under_way)", "at_a_time.saturating_sub(under_way).max(usize::MAX)", UNIT + ["pki::rotation"]),
    ("rotation-unknown", "rotation", "a control-plane node is powered off though nobody knows whether another one turns",
     "src/pki/mod.rs", "_ if rotates => Self::Unknown,", "_ if rotates && false => Self::Unknown,", UNIT + ["pki::tests"]),
    ("import", "roots", "roots are taken from a Secret of any type",
     "src/pki/import.rs", "secret.type_.as_deref() == Some(names::ROOTS_TYPE)", "secret.type_.as_deref() != Some(\"\")", UNIT + ["pki::import"]),
    ("mismatch", "roots", "a key of another authority passes",
     "src/pki/escrow/check.rs", "!= certificate.public_key().raw {", "!= certificate.public_key().raw && false {", UNIT + ["pki::escrow"]),
    ("form", "roots", "the same roots with other line ends are others",
     "src/pki/escrow/check.rs", 'certificate: embedded::encode("CERTIFICATE", pem.contents)', "certificate: pair.certificate.clone()", UNIT + ["pki::escrow"]),
    ("import-again", "roots", "imported roots are recorded though another guest has them",
     "src/pki/reconcile.rs", "if recorded.is_empty() && valid.pki.import_from.is_some() {", "if recorded.is_empty() && valid.pki.import_from.is_none() {", CONTROLLER + ["imported_roots"]),
    ("unaccounted-export", "roots", "keys are exported though no event tells of it",
     "src/cli/pki/export.rs", ".await.map_err(|error| nothing_left(&identity, &secret, &error))?;", ".await.map_err(|error| nothing_left(&identity, &secret, &error)).ok();", CONTROLLER + ["an_export_is"]),
    ("crash", "crashes", "roots that were made before a crash are not recorded after it",
     "src/pki/plan.rs", "            if *made != world.records {", "            if *made != world.records && !world.records.is_empty() {", CONTROLLER + ["networks_and_keys"]),
    ("finalizer", "deletion", "the finalizer goes while the namespace is there",
     "src/cluster/plan.rs", "(namespace_is_gone, \"namespace\"),", "(namespace_is_gone || true, \"namespace\"),", UNIT + ["cluster::plan"]),
    ("apart", "placement", "control-plane nodes ask for no host of their own",
     "src/kvm/reconcile.rs", "if is_one_of_many && !without.own_host {", "if false && is_one_of_many && !without.own_host {", CONTROLLER + ["share_a_host_only"]),
    ("outage", "outage", "nobody notices that the server is back",
     "src/runtime/cache/pulse.rs", "returns.send_modify(|count| *count += 1);", "let _ = &returns;", CONTROLLER + ["every_watch"]),
    ("lease", "leadership", "the holder writes for longer than the others wait",
     "src/runtime/lease/plan.rs", "sent + length * 3 / 4", "sent + length * 2", UNIT + ["lease"]),
    ("guard", "leadership", "patches are sent without leadership",
     "src/runtime/link.rs", "!matches!(self, Self::Get | Self::Watch)", "!matches!(self, Self::Get | Self::Watch | Self::Patch)", UNIT + ["link"]),
    ("steady", "steady state", "what is so already is written again",
     "src/runtime/apply.rs", "if changed.is_empty() && contains(", "if false && changed.is_empty() && contains(", CONTROLLER + ["nothing_is_written"]),
    ("owner", "ownership", "everybody's objects are ours",
     "src/runtime/apply.rs", "annotation(meta, self.annotation) == Some(&self.uid)", "annotation(meta, self.annotation).is_some()", UNIT + ["apply"]),
    ("fair", "fairness", "one namespace may hold all workers",
     "src/runtime/queue/fair.rs", "share: workers.div_ceil(2).max(1)", "share: workers.max(1)", UNIT + ["fair"]),
    ("children", "children", "nobody hears what others do to a guest's objects",
     "src/context.rs", "                wake.labelled(meta);", "                let _ = (&wake, meta);", CONTROLLER + ["deleted_and_edited"]),
    ("malformed", "hostile input", "what cannot be read is gone, and its claims with it",
     "src/network/holdings.rs", "!self.may_live(key, uid).await?", "{ self.may_live(key, uid).await?; true }", CONTROLLER + ["strangers_are_left_alone"]),
    ("reserved", "access", "a user may be called as Kubernetes' own are",
     "src/access/plan.rs", "RESERVED.iter().find(|prefix| name.starts_with(**prefix))", "RESERVED.iter().find(|prefix| false && name.starts_with(**prefix))", UNIT + ["access"]),
    ("mount", "Vault", "somebody else's PKI mount is taken for the guest's",
     "src/pki/vault/mounts.rs", "Some(false) => return Err(Error::Foreign(mount)),", "Some(false) => {}", VAULT + ["vault_issues"]),
    ("escrow-order", "Vault", "an authority is imported before its key is written down",
     "src/pki/vault/bring.rs", "self.write_down(identity, authority, &pair).await?;\n                self.import(&mount, &pair).await?;", "self.import(&mount, &pair).await?;\n                self.write_down(identity, authority, &pair).await?;", VAULT + ["keys_that"]),
    ("escrow-read", "Vault", "the controller manager reads the keys that it wrote down",
     "charts/giantnetes/files/vault-policy.hcl", 'capabilities = ["create"]', 'capabilities = ["create", "read"]', VAULT + ["keys_that"]),
    ("exchanged", "Vault", "a certificate of another root than the recorded one is used",
     "src/pki/vault/check.rs", "certificate.verify_signature(Some(root.public_key())).is_err()", "false", UNIT + ["check"]),
    ("unaccounted", "Vault", "a deleted Cluster's PKI mounts are left in Vault",
     "src/pki/reconcile.rs", "if recorded.is_some() {", "if recorded.is_some() && false {", CONTROLLER + ["roots_are_made"]),
    ("login", "Vault", "a node on AWS signs by the roles of all logins",
     "charts/giantnetes/files/aws/vault-nodes-policy.hcl", "sign/{{identity.entity.aliases.ACCESSOR.name}}.*", "sign/*", UNIT + ["aws::identity"]),
    ("kept", "Vault", "every node on AWS reads the keys that control planes have",
     "charts/giantnetes/files/aws/vault-nodes-policy.hcl", "giantnetes-keys/{{identity.entity.aliases.ACCESSOR.name}}", "giantnetes-keys/*", UNIT + ["aws::identity"]),
    ("wildcard", "Vault", "a login is for every IAM role of an account",
     "src/aws/identity.rs", 'b"+=,.@_-".contains', 'b"*+=,.@_-".contains', UNIT + ["aws::identity"]),
    ("renewal", "node agent", "a certificate is renewed when it has ended",
     "src/node_agent/plan.rs", "checked_add(life * 2 / 3)", "checked_add(life)", UNIT + ["node_agent"]),
    ("another-key", "node agent", "a key is used that is not the one that the node was told of",
     "src/node_agent/keys.rs", "if fingerprint(text) == key.sha256 {", "if !text.is_empty() {", UNIT + ["node_agent"]),
    ("put-in", "node agent", "a machine puts what it is into what users write",
     "src/node_config/component.rs", "chain(self.flags.iter().map(|argument| exec::quote(argument)))", "chain(self.flags.iter().cloned())", UNIT + ["node_config"]),
    ("hurry", "node agent", "what failed is tried again at once",
     "src/node_agent/plan.rs", "due.max(next)", "due.min(next)", UNIT + ["node_agent"]),
    ("torn", "node agent", "a key that does not fit its certificate is kept",
     "src/pki/vault/check.rs", "subject_public_key.data.as_ref() != key {", "subject_public_key.data.as_ref() != key && false {", UNIT + ["node_agent"]),
    ("secret", "secrets", "a kubeconfig is logged",
     "src/pki/issue.rs", 'info!("kubeconfig issued");', 'info!(text = text.expose_secret(), "kubeconfig issued");', CONTROLLER + ["nothing_is_written"]),
    ("rest", "claims", "a host name is somebody else's as soon as it was given back",
     "src/network/holdings.rs", "Ok(left) if !left.is_zero() =>", "Ok(left) if false && !left.is_zero() =>", CONTROLLER + ["a_host_name_has_one"]),
    ("leak", "isolation", "a guest counts as kept apart though its VM pods reach what they must not",
     "src/isolation/plan.rs", "    open.chain(found).collect()", "    open.chain(found).take(0).collect()", UNIT + ["isolation"]),
    ("name", "claims", "a host name is given back while a load balancer leads there",
     "src/network/outside.rs", "self.close_others(identity, &valid.exposure).await? {", "(self.close_others(identity, &valid.exposure).await? || true) {", CONTROLLER + ["a_way_stays_open"]),
    ("way", "exposure", "the old way to a guest is closed before the new one is open",
     "src/network/outside.rs", "if matches!(outside, Outside::At(_)) && ", "if ", CONTROLLER + ["a_way_stays_open"]),
    ("exact", "apply", "what was desired once and is no more stays",
     "src/runtime/apply.rs", "(Some(_), None) => remove(&mut whole, path),", "(Some(_), None) => {}", CONTROLLER + ["a_load_balancer_leads"]),
    ("silent", "guests", "a node that was given up keeps its guest waiting",
     "src/guest/addons.rs", "status.desired_number_scheduled.saturating_sub(silent)", "status.desired_number_scheduled.saturating_sub(silent.min(0))", UNIT + ["guest::addons"]),
    ("peers", "overlay", "VXLAN is taken from everybody",
     "src/supervisor/network/rules.rs", "{family} saddr @{PEERS} accept", "{family} saddr != @{PEERS} accept\n    udp dport {VXLAN_PORT} accept", OVERLAY + ["forged_vxlan"]),
    ("arp", "overlay", "a VM may claim another's address",
     "src/supervisor/network/rules.rs", "arp saddr ip {{ {ip}, 0.0.0.0 }} return", "arp saddr ip != {ip} return\n    ether type arp return", OVERLAY + ["forged_arp"]),
    ("qemu", "overlay", "QEMU's user may send VXLAN",
     "src/supervisor/network/rules.rs", "meta skuid {QEMU_ID} udp dport {{ {IANA_VXLAN_PORT}, {VXLAN_PORT}, {PATH_PORT} }} drop", "meta skuid {QEMU_ID} udp dport {{ {IANA_VXLAN_PORT}, {VXLAN_PORT}, {PATH_PORT} }} accept", OVERLAY + ["vms_and_qemu"]),
    ("narrow", "overlay", "a peer that says nothing is taken for a narrow way",
     "src/supervisor/path_mtu.rs", "(before, Seen::Nothing) => before,", "(_, Seen::Nothing) => Self::Narrow(None),", UNIT + ["path_mtu"]),
    ("router", "overlay", "with Flannel a pod forwards whatever its VM sends",
     "src/supervisor/network/rules.rs", "ip saddr {ip} ip daddr {network} accept", "accept", OVERLAY + ["flannel::forged_sources"]),
    ("vtep", "overlay", "with Flannel a VM reaches other VMs' pods",
     "src/supervisor/network/rules.rs", 'format!("    iifname \\"{vxlan}\\" drop\\n")', "String::new()", OVERLAY + ["flannel::pods_are"]),
    ("inherited", "overlay", "flanneld starts while its address has two subnets",
     "src/supervisor/flannel/judge.rs", "others.next().map_or(Ok(()), |(other, _)| Err(Wait::Doubled(*other)))", "others.next().map_or(Ok(()), |_| Ok(()))", OVERLAY + ["flannel::waits_for"]),
    ("lease", "overlay", "the lease of a VM pod that is gone stays",
     "src/flannel/plan.rs", "let gone = found.values.keys().filter(|key| key.starts_with(&subnets) && !leases.contains_key(*key));", "let gone = found.values.keys().filter(|key| key.starts_with(&subnets) && leases.is_empty());", UNIT + ["flannel::plan"]),
    ("aws-intent", "AWS", "a stack is made before the attempt is written down",
     "src/aws/deploy/mod.rs", "        if seen.is_some() || self.order.again {", "        if self.order.again {", UNIT + ["aws::deploy"]),
    ("aws-namesake", "AWS", "whatever has nothing but a change set is ours",
     "src/aws/deploy/sight.rs", "if self.record.id.as_deref() == Some(id) {", "if self.record.attempt > 0 || id.is_empty() {", UNIT + ["aws::deploy"]),
    ("aws-stale", "AWS", "what was done to a stack is judged by an older look",
     "src/aws/accounts/account.rs", "done.is_none_or(|done| look.began > done)", "done.is_none_or(|_| true)", UNIT + ["aws::accounts"]),
    ("aws-storm", "AWS", "an account that throttles is asked as often as before",
     "src/aws/calls/pace.rs", "self.pace((self.interval * 2).min(SLOWEST), now);", "self.pace(self.interval.min(SLOWEST), now);", UNIT + ["aws::calls"]),
    ("aws-leads", "AWS", "whoever does not lead changes stacks",
     "src/aws/calls/caller.rs", "Some(leadership) if operation.writes => match", "Some(leadership) if operation.writes && leadership.holds() => match", UNIT + ["aws::calls"]),
]

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("GIANTNETES_CACHE") or pathlib.Path.home() / ".cache/giantnetes")


def table():
    print("# Mutants\n\nRules that were broken on purpose, and the test that notices. `e2e/mutants.py` does it again; this page is what")
    print("`e2e/mutants.py --table` prints.\n\n| Mutant | Kind | What is broken | Where | Noticed by |\n|---|---|---|---|---|")
    for name, kind, what, path, _, _, test in MUTANTS:
        words = [word for word in test[2:] if not word.startswith("-")]
        print(f"| {name} | {kind} | {what} | `{path}` | {' '.join(words)} |")


def failed_tests(output):
    """Names in the list with which a failed run ends. A run that fails without one shows nothing about the mutant."""
    _, _, last = output.rpartition("\nfailures:\n")
    listed = last.partition("\n\n")[0].splitlines()
    return [line.strip() for line in listed if line.startswith("    ")]


def run(copy, environment, mutant):
    name, _, what, path, old, new, test = mutant
    file = copy / path
    text = file.read_text()
    if text.count(old) != 1:
        return f"{name}: {path} has the text it changes {text.count(old)} times: {old}"
    file.write_text(text.replace(old, new))
    began = time.monotonic()
    try:
        build = ["cargo", "build", "-q", "--workspace", "--bins"]
        # Of a mutant that does not even compile nobody knows whether a test would notice it.
        for command in [build, test[: test.index("--")] + ["--no-run"]]:
            made = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=900)
            if made.returncode != 0:
                return f"{name}: it does not compile\n{made.stderr[-2000:]}"
        tried = subprocess.run(test, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
        if tried.returncode == 0:
            return f"{name}: no test notices that {what}"
        failed = failed_tests(tried.stdout)
        if not failed:
            return f"{name}: its test ended with {tried.returncode}, and none of it failed\n{(tried.stdout + tried.stderr)[-2000:]}"
        print(f"mutant {name}: noticed in {time.monotonic() - began:.0f} s by {failed[0]}", flush=True)
        return None
    finally:
        file.write_text(text)


def main():
    if sys.argv[1:] == ["--table"]:
        return table()
    wanted = [mutant for mutant in MUTANTS if not sys.argv[1:] or mutant[0] in sys.argv[1:]]
    copy = CACHE / "mutants" / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=True)
    environment = dict(os.environ, CARGO_BUILD_BUILD_DIR=str(CACHE / "mutants" / "build"), GIANTNETES_CACHE=str(CACHE), RUST_BACKTRACE="0")
    environment.pop("CARGO_TARGET_DIR", None)
    # A sample is enough to notice; whole outages would take most of the time.
    environment.pop("CONTROLLER", None)
    for test in {tuple(mutant[6]): mutant[6] for mutant in wanted}.values():
        # Where the unbroken product fails, a mutant's failure shows nothing.
        subprocess.run(["cargo", "build", "-q", "--workspace", "--bins"], cwd=copy, env=environment, check=True)
        subprocess.run(test, cwd=copy, env=environment, check=True, stdout=subprocess.DEVNULL)
    problems = [problem for problem in (run(copy, environment, mutant) for mutant in wanted) if problem]
    shutil.rmtree(copy)
    for problem in problems:
        print(f"mutants: {problem}", file=sys.stderr)
    print(f"mutants: {len(wanted) - len(problems)} of {len(wanted)} were noticed")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
