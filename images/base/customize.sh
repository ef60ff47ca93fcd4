# Run by the template build on the host: $1 is the root directory, $2 the default user.
root=$1
user=$2

chroot "$root" useradd --uid 1000 --user-group --create-home --home-dir "/home/$user" --shell /bin/bash "$user"
printf '%s ALL=(ALL:ALL) NOPASSWD: ALL\n' "$user" >"$root/etc/sudoers.d/$user"
chmod 0440 "$root/etc/sudoers.d/$user"

# C.UTF-8 is part of libc: UTF-8 without a locales package.
printf 'LANG=C.UTF-8\n' >"$root/etc/default/locale"

# apt in a sandbox: no translations, no recommended extras, no downloaded packages kept.
cat >"$root/etc/apt/apt.conf.d/90roost" <<'EOF'
APT::Install-Recommends "false";
Acquire::Languages "none";
APT::Keep-Downloaded-Packages "false";
EOF

# Caches and logs of the build, old copies of the account files.
rm -rf "$root"/var/cache/debconf/*-old "$root"/var/cache/ldconfig/* "$root"/var/lib/dpkg/*-old
rm -f "$root"/etc/passwd- "$root"/etc/group- "$root"/etc/shadow- "$root"/etc/gshadow- "$root"/etc/subuid- "$root"/etc/subgid-
find "$root/var/log" -type f -delete
