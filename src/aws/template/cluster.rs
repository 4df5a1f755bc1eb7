//! The stack of a guest's network, API, key and control plane.

use super::{Body, ClusterStack, Head, InputError, Template, api, masters, network, rights, security};

impl ClusterStack {
    /// Its template.
    pub fn render(&self) -> Result<Body, InputError> {
        self.check()?;
        let mut template = Template::default();
        network::add(&mut template, self);
        security::add(&mut template, self);
        api::add(&mut template, self);
        rights::add_key(&mut template, self);
        rights::add_master_role(&mut template, self);
        masters::add(&mut template, self);
        let mut tags = self.tags.clone();
        tags.extend(self.owner.tags());
        template.render(Head {
            stack: self.owner.cluster_stack(),
            description: format!("Network, API and control plane of guest {}", self.owner.name),
            spec_hash: self.spec_hash.clone(),
            tags,
        })
    }
}
