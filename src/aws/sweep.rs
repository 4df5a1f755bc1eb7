//! What a guest itself made in its account, and would leave behind: load balancers of its Services, volumes of its claims. Removed by the
//! tag that its cloud controller and CSI driver put on them, since its API may be gone.

use super::{
    accounts::{Session, View},
    calls::{
        AwsError, Failure,
        resources::{Kind, Made},
    },
    tags::Owner,
};

/// Removes what can be removed. Answers what is left, which goes within moments, or is in use.
///
/// # Errors
/// If something cannot be listed or removed.
pub(super) async fn sweep(session: &Session, owner: &Owner) -> Result<Vec<Made>, AwsError> {
    let tag = owner.kubernetes_tag();
    let mut found = session.resources.volumes(&tag).await?;
    if let Some(vpc) = network(session, owner) {
        found.extend(session.resources.balancers(&vpc, &tag).await?);
    }
    let mut left = Vec::new();
    for made in found {
        let done = if made.in_use { Ok(()) } else { session.resources.delete(&made).await };
        match done {
            // Somebody began to use it. The next look shows that.
            Ok(()) | Err(AwsError { source: Failure::Busy(_), .. }) => left.push(made),
            Err(error) => return Err(error),
        }
    }
    Ok(left)
}

/// What of it is in the way of the network.
pub(super) fn in_the_way(left: &[Made]) -> impl Iterator<Item = &Made> {
    left.iter().filter(|made| made.kind != Kind::Volume)
}

/// Id of the guest's network, as long as its stack is there.
fn network(session: &Session, owner: &Owner) -> Option<String> {
    match session.account.view(&owner.cluster_stack()) {
        Ok(View::There(seen)) => seen.outputs.get("VpcId").cloned(),
        Ok(View::Absent | View::Stale) | Err(_) => None,
    }
}
