//! Users and roles: `root`, which is the controller manager, and for each guest one user with one role of the same name, whose
//! rights end with the guest's prefix. Nobody has a password; a user is the common name of a certificate.

use std::collections::BTreeSet;

use tracing::info;

use super::{
    Client, EtcdError, Span,
    api::{Permission, PermissionType},
};
use crate::{api::names, flannel::lease};

/// The user, and the role, that may do everything. The names are etcd's.
pub const ROOT: &str = "root";
/// How many keys are looked at in one call when guests are counted.
const PAGE: u16 = 1000;

/// Name of the user and of the role of the guest with this id: that of its namespace.
pub fn user(id: &str) -> String {
    names::guest_namespace(id)
}

/// Lets etcd ask for rights, all of which the user [`ROOT`] has, and nobody else any. Answers whether it did not do so before:
/// it is new then, or lost what it had.
///
/// # Errors
/// [`EtcdError`]. Whoever tries again goes on where it ended.
pub async fn enable(client: &Client) -> Result<bool, EtcdError> {
    if client.auth_status().await?.enabled {
        return Ok(false);
    }
    // Until now anybody with a certificate could make users and roles, and give them what he liked. Guests get theirs again.
    for user in client.user_list().await? {
        client.user_delete(&user).await?;
    }
    for role in client.role_list().await? {
        client.role_delete(&role).await?;
    }
    client.role_add(ROOT).await?;
    client.user_add(ROOT).await?;
    client.user_grant_role(ROOT, ROOT).await?;
    client.auth_enable().await?;
    info!("etcd asks for rights from now on");
    Ok(true)
}

/// Gives the guest with this id its user and role, with these rights and no other. Answers whether anything was written.
///
/// # Errors
/// [`EtcdError`]. Whoever tries again goes on where it ended.
pub async fn ensure_guest(client: &Client, id: &str) -> Result<bool, EtcdError> {
    let name = user(id);
    let (role, roles) = (client.role_get(&name).await?, client.user_get(&name).await?);
    let steps = steps(&name, &rights(id), role.as_deref(), roles.as_deref());
    let writes = !steps.is_empty();
    for step in steps {
        match step {
            Step::DeleteRole => client.role_delete(&name).await?,
            Step::AddRole => client.role_add(&name).await?,
            Step::Permit(permission) => client.role_grant_permission(&name, permission).await?,
            Step::DeleteUser => client.user_delete(&name).await?,
            Step::AddUser => client.user_add(&name).await?,
            Step::GrantRole => client.user_grant_role(&name, &name).await?,
        }
    }
    Ok(writes)
}

/// Removes user, role and keys of the guest with this id, in this order: a flanneld that still runs is shut out before its keys
/// go. Answers what is there nevertheless, seen after all of that; nothing, if the guest is gone.
///
/// # Errors
/// [`EtcdError`]. Whoever tries again goes on where it ended.
pub async fn remove_guest(client: &Client, id: &str) -> Result<Vec<String>, EtcdError> {
    let before = Remains::see(client, id).await?;
    if before.is_nothing() {
        return Ok(Vec::new());
    }
    let name = user(id);
    if before.user {
        client.user_delete(&name).await?;
    }
    if before.role {
        client.role_delete(&name).await?;
    }
    // A flanneld that was not shut out yet may have written where there was nothing.
    let keys = client.delete(&Span::prefix(&lease::prefix(id))).await?;
    info!(guest = id, keys, "removed user, role and keys from etcd");
    Ok(Remains::see(client, id).await?.in_words(id))
}

/// Ids of all guests of which there is a user, a role or a key.
///
/// # Errors
/// [`EtcdError`]
pub async fn guests(client: &Client) -> Result<BTreeSet<String>, EtcdError> {
    let named = [client.user_list().await?, client.role_list().await?].concat();
    let ids = named.iter().filter_map(|name| name.strip_prefix(names::NAMESPACE_PREFIX));
    let mut ids: BTreeSet<_> = ids.map(ToOwned::to_owned).collect();
    let mut rest = Span::prefix(lease::ROOT);
    loop {
        let (keys, more) = client.keys(&rest, PAGE).await?;
        ids.extend(keys.iter().filter_map(|key| lease::guest(key)).map(ToOwned::to_owned));
        let Some(last) = keys.last().filter(|_| more) else { return Ok(ids) };
        rest = match lease::guest(last) {
            // The guest's other keys say nothing new.
            Some(id) => rest.after_prefix(&lease::prefix(id)),
            None => rest.after_key(last),
        };
    }
}

/// What a guest's role permits: to read all of the guest's keys, and to write leases.
fn rights(id: &str) -> [Permission; 2] {
    let permit = |what: PermissionType, prefix: &str| {
        let Span { key, end } = Span::prefix(prefix);
        Permission { perm_type: what.into(), key, range_end: end }
    };
    [permit(PermissionType::Read, &lease::prefix(id)), permit(PermissionType::Readwrite, &lease::subnets(id))]
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    DeleteRole,
    AddRole,
    Permit(Permission),
    DeleteUser,
    AddUser,
    GrantRole,
}

/// What makes a role and a user of this name so that they have these rights and no other. What permits more is made anew.
fn steps(name: &str, rights: &[Permission], role: Option<&[Permission]>, roles: Option<&[String]>) -> Vec<Step> {
    let mut steps = Vec::new();
    let kept = role.filter(|role| role.iter().all(|permission| rights.contains(permission)));
    if kept.is_none() {
        if role.is_some() {
            steps.push(Step::DeleteRole);
        }
        steps.push(Step::AddRole);
    }
    let missing = rights.iter().filter(|right| !kept.is_some_and(|role| role.contains(right)));
    steps.extend(missing.cloned().map(Step::Permit));
    let kept_user = roles.filter(|roles| roles.iter().all(|role| role == name));
    if kept_user.is_none() {
        if roles.is_some() {
            steps.push(Step::DeleteUser);
        }
        steps.push(Step::AddUser);
    }
    // A role that is deleted is nobody's any more.
    if kept.is_none() || kept_user.is_none_or(<[String]>::is_empty) {
        steps.push(Step::GrantRole);
    }
    steps
}

/// What is there of a guest.
struct Remains {
    user: bool,
    role: bool,
    keys: u64,
}

impl Remains {
    async fn see(client: &Client, id: &str) -> Result<Self, EtcdError> {
        let name = user(id);
        Ok(Self {
            user: client.user_get(&name).await?.is_some(),
            role: client.role_get(&name).await?.is_some(),
            keys: client.count(&Span::prefix(&lease::prefix(id))).await?,
        })
    }

    fn is_nothing(&self) -> bool {
        !self.user && !self.role && self.keys == 0
    }

    fn in_words(&self, id: &str) -> Vec<String> {
        let name = user(id);
        let user = self.user.then(|| format!("user {name}"));
        let role = self.role.then(|| format!("role {name}"));
        let keys = (self.keys > 0).then(|| format!("{} keys of {}", self.keys, lease::prefix(id)));
        [user, role, keys].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_end_with_the_guests_prefix() {
        let [all, leases] = rights("ab");
        assert_eq!((all.key, all.range_end), (b"/giantnetes/ab/".to_vec(), b"/giantnetes/ab0".to_vec()));
        assert_eq!(
            (leases.key, leases.range_end),
            (b"/giantnetes/ab/subnets/".to_vec(), b"/giantnetes/ab/subnets0".to_vec())
        );
        assert_eq!((all.perm_type, leases.perm_type), (0, 2));
    }

    #[test]
    fn a_guest_is_made_from_whatever_is_there() {
        let rights = rights("ab");
        let [all, leases] = rights.clone();
        let other = super::rights("abc")[1].clone();
        let name = user("ab");
        let of = |role: Option<&[Permission]>, roles: Option<&[&str]>| {
            let roles = roles.map(|roles| roles.iter().map(|role| (*role).to_owned()).collect::<Vec<_>>());
            steps(&name, &rights, role, roles.as_deref())
        };
        let permits = [Step::Permit(all.clone()), Step::Permit(leases.clone())];
        assert_eq!(of(Some(&rights), Some(&["g8s-ab"])), []);
        let made = [&[Step::AddRole], &permits[..], &[Step::AddUser, Step::GrantRole]].concat();
        assert_eq!(of(None, None), made);
        // As a crash leaves them.
        assert_eq!(of(Some(&[]), None), made[1..]);
        assert_eq!(of(Some(std::slice::from_ref(&all)), None), made[2..]);
        assert_eq!(of(Some(&rights), None), made[3..]);
        assert_eq!(of(Some(&rights), Some(&[])), made[4..]);
        // As somebody else leaves them.
        let anew = [&[Step::DeleteRole, Step::AddRole], &permits[..], &[Step::GrantRole]].concat();
        assert_eq!(of(Some(&[all, leases, other]), Some(&["g8s-ab"])), anew);
        assert_eq!(of(None, Some(&["g8s-ab"])), anew[1..]);
        let anew = [Step::DeleteUser, Step::AddUser, Step::GrantRole];
        assert_eq!(of(Some(&rights), Some(&["g8s-ab", "root"])), anew);
    }
}
