// Package account knows the users of the sandbox from /etc/passwd and /etc/group, read anew at
// every look-up: the sandbox's user may add some at any time.
package account

import (
	"bufio"
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
)

// maxPath is the kernel's PATH_MAX without the final NUL.
const maxPath = 4095

// User is a line of /etc/passwd with its groups.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
	Home   string
	Shell  string
}

// Database is where the users are kept. The zero value is the system's.
type Database struct {
	Passwd string
	Group  string
}

// Lookup finds a user by name.
func (d Database) Lookup(name string) (User, error) {
	fields, err := find(d.passwd(), 7, func(f []string) bool { return f[0] == name })
	if err != nil {
		return User{}, fault.Wrap(err, "look up user", quote(name))
	}
	if fields == nil {
		return User{}, fault.New(fault.Unauthenticated, "look up user", quote(name), "no such user in the sandbox")
	}
	uid, err1 := strconv.ParseUint(fields[2], 10, 32)
	gid, err2 := strconv.ParseUint(fields[3], 10, 32)
	if err1 != nil || err2 != nil {
		return User{}, fault.New(fault.Unauthenticated, "look up user", quote(name), "its line in /etc/passwd has no valid uid and gid")
	}
	u := User{Name: name, UID: uint32(uid), GID: uint32(gid), Home: fields[5], Shell: fields[6]}
	u.Groups = d.groupsOf(u)
	return u.withDefaults(), nil
}

// FromRequest finds the user a request acts as: its Basic authorization, or fallback.
func (d Database) FromRequest(h http.Header, fallback string) (User, error) {
	name, err := basicUser(h.Get("Authorization"))
	if err != nil {
		return User{}, err
	}
	if name == "" {
		name = fallback
	}
	return d.Lookup(name)
}

// Names maps ids to names, for listings.
func (d Database) Names() (users, groups map[uint32]string) {
	return names(d.passwd(), 7), names(d.group(), 4)
}

// Credential is what a process of this user runs under.
func (u User) Credential() *syscall.Credential {
	return &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
}

// Resolve makes a path absolute: relative ones start at the home, as does "~".
func (u User) Resolve(path string) (string, error) {
	if strings.IndexByte(path, 0) >= 0 {
		return "", fault.New(fault.Invalid, "resolve path", "", "the path holds a NUL byte")
	}
	if len(path) > maxPath {
		return "", fault.New(fault.Invalid, "resolve path", "", "the path is longer than 4095 bytes")
	}
	switch {
	case path == "~":
		path = u.Home
	case strings.HasPrefix(path, "~/"):
		path = filepath.Join(u.Home, path[2:])
	case !filepath.IsAbs(path):
		path = filepath.Join(u.Home, path)
	}
	return filepath.Clean(path), nil
}

// MkdirAll makes a directory and its parents; those it makes belong to the user.
func (u User) MkdirAll(path string) error {
	info, err := os.Stat(path)
	if err == nil {
		if !info.IsDir() {
			return fault.New(fault.Invalid, "make directory", path, "a file is in the way")
		}
		return nil
	}
	if !os.IsNotExist(err) {
		return FromOS(err, "make directory", path)
	}
	if err := u.MkdirAll(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o755); err != nil && !os.IsExist(err) {
		return FromOS(err, "make directory", path)
	}
	return FromOS(os.Lchown(path, int(u.UID), int(u.GID)), "give to "+u.Name, path)
}

func (u User) withDefaults() User {
	if u.Home == "" {
		u.Home = "/"
	}
	if u.Shell == "" {
		u.Shell = "/bin/sh"
	}
	return u
}

func (d Database) groupsOf(u User) []uint32 {
	groups := []uint32{u.GID}
	_, _ = find(d.group(), 4, func(f []string) bool {
		gid, err := strconv.ParseUint(f[2], 10, 32)
		member := slices.Contains(strings.Split(f[3], ","), u.Name)
		if err == nil && member && uint32(gid) != u.GID {
			groups = append(groups, uint32(gid))
		}
		return false
	})
	return groups
}

func (d Database) passwd() string { return orDefault(d.Passwd, "/etc/passwd") }
func (d Database) group() string  { return orDefault(d.Group, "/etc/group") }

// find returns the first line with at least n fields that match accepts.
func find(path string, n int, match func([]string) bool) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) >= n && match(fields) {
			return fields, nil
		}
	}
	return nil, lines.Err()
}

func names(path string, n int) map[uint32]string {
	out := map[uint32]string{}
	_, _ = find(path, n, func(f []string) bool {
		id, err := strconv.ParseUint(f[2], 10, 32)
		if _, seen := out[uint32(id)]; err == nil && !seen {
			out[uint32(id)] = f[0]
		}
		return false
	})
	return out
}

// basicUser takes the user out of `Basic base64("<user>:")`.
func basicUser(header string) (string, error) {
	if header == "" {
		return "", nil
	}
	encoded, ok := strings.CutPrefix(header, "Basic ")
	plain, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil {
		return "", fault.New(fault.Unauthenticated, "read", "Authorization header", `it is not Basic base64("<user>:")`)
	}
	name, _, _ := strings.Cut(string(plain), ":")
	return name, nil
}

func orDefault(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}

func quote(name string) string { return "'" + name + "'" }
