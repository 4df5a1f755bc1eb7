# What a node on AWS may do in Vault: have requests signed by the roles that are called after its own login, and nothing else.
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
