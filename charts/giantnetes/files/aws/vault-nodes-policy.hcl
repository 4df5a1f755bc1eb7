# What a node on AWS may do in Vault: have requests signed by the roles that are called after its own login, read the keys that lie
# under its name, and nothing else.
# It is the same policy for the nodes of all guests. The alias of who logs in by the auth method `aws` is the id that Vault gave
# the role of that login (its default, iam_alias=role_id), and no two roles have one id. With another `prefix` in the settings,
# another word stands here for giantnetes.
#
#   vault policy write giantnetes-nodes - < <(sed "s/ACCESSOR/$(vault read -field=accessor sys/auth/giantnetes-aws)/" vault-nodes-policy.hcl)

# Keys are made on the node, and Vault sees the requests alone.
path "giantnetes/+/+/sign/{{identity.entity.aliases.ACCESSOR.name}}.*" {
  capabilities = ["update"]
}

# Certificates of authorities; Vault tells them to everybody.
path "giantnetes/+/+/cert/ca" {
  capabilities = ["read"]
}

# Keys that nobody signs, of service accounts and of encryption at rest: only the login of a control plane has some.
path "giantnetes-keys/{{identity.entity.aliases.ACCESSOR.name}}" {
  capabilities = ["read"]
}
