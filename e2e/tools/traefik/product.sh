module=github.com/traefik/traefik/v3
binaries=(traefik=github.com/traefik/traefik/v3/cmd/traefik)
ldflags="-X github.com/traefik/traefik/v3/pkg/version.Version=$(version_of "$module")"
