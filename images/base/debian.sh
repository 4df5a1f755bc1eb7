# Sourced by the scripts that make a Debian root: where its packages come from and what is left out of them.

# debian_sources SUITE   SUITE of the build machine's own Debian archives, as sources.list lines: a mirror that works
# there works here. On another distribution than Debian 12 name them: GIANTNETES_DEBIAN_SOURCES=FILE, with the lines of
# bookworm.
debian_sources() { bookworm_sources | sed "s/bookworm/$1/"; }
bookworm_sources() {
  if [[ -n ${GIANTNETES_DEBIAN_SOURCES:-} ]]; then
    cat "$GIANTNETES_DEBIAN_SOURCES"
    return
  fi
  local lines
  lines=$(apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|deb $(REPO_URI) $(CODENAME) $(COMPONENT)' \
    'Created-By: Packages' | awk -F'|' '$1 == "Debian" && $2 ~ /^bookworm(-updates|-security)?$/ && $3 ~ / main$/ {print $3}' | sort -u)
  # A machine whose package lists were never fetched has no targets to list.
  [[ -n $lines ]] || { echo "no Debian 12 archive is configured here; run apt-get update, or set GIANTNETES_DEBIAN_SOURCES" >&2; return 1; }
  echo "$lines"
}

# mmdebstrap without what nobody reads in an image. The environment is emptied so that nothing of the build machine
# (locale, Python's or a shell's settings) leaks into maintainer scripts. The hook merges /usr from the start: the
# package usrmerge, which would do it afterwards, brings all of Perl.
debootstrap_with() {
  local exclude options=()
  for exclude in /usr/share/doc/\* /usr/share/info/\* /usr/share/man/\* /usr/share/locale/\* /usr/share/i18n/\* \
    /usr/share/lintian/\* /usr/share/linda/\* /usr/share/bash-completion/\* /usr/share/groff/\*; do
    options+=(--dpkgopt="path-exclude=$exclude")
  done
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive INITRD=No \
    SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}" \
    mmdebstrap --mode=root --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
    "${options[@]}" --dpkgopt='path-include=/usr/share/doc/*/copyright' "$@"
}
