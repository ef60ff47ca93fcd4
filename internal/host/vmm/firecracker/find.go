package firecracker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

// Environment of Find.
const (
	EnvBinary  = "ROOST_FIRECRACKER"
	EnvJailer  = "ROOST_JAILER"
	EnvSeccomp = "ROOST_FIRECRACKER_SECCOMP"
)

// oldest is the first version whose jailer is believed: those before follow links that a VM made.
var oldest = [3]int{1, 15, 1}

// Find looks for a program: in the environment, beside roost, in PATH.
func Find(env, name string) (string, error) {
	if path := os.Getenv(env); path != "" {
		return path, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(beside); err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fault.New(fault.FailedPrecondition, "find", name, "not installed").
			WithHint("put firecracker and jailer of one release (1.15.1 or later) into PATH or beside roost: " +
				"https://github.com/firecracker-microvm/firecracker/releases")
	}
	return path, nil
}

// findBoth fills in the programs, by the names that they have behind links: the jail is named so.
func findBoth(o Options) (_ Options, err error) {
	if o.Binary == "" {
		if o.Binary, err = Find(EnvBinary, "firecracker"); err != nil {
			return o, err
		}
	}
	if o.Jailer == "" {
		if o.Jailer, err = Find(EnvJailer, "jailer"); err != nil {
			return o, err
		}
	}
	if o.SeccompFilter == "" {
		o.SeccompFilter = os.Getenv(EnvSeccomp)
	}
	for _, path := range []*string{&o.Binary, &o.Jailer} {
		if *path, err = resolve(*path); err != nil {
			return o, err
		}
	}
	return o, nil
}

func resolve(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return "", &fault.Error{Kind: fault.FailedPrecondition, Op: "find", Object: path, Err: err}
	}
	return real, nil
}

// program is one that was looked at: it must stay what it is.
type program struct {
	path string
	info os.FileInfo
	sum  string
}

// inspect hashes both programs and demands one version, that is new enough.
func inspect(ctx context.Context, o Options) (both []program, version string, err error) {
	for _, path := range []string{o.Binary, o.Jailer} {
		p, v, err := inspectOne(ctx, path)
		if err != nil {
			return nil, "", err
		}
		if version != "" && v != version {
			return nil, "", fault.New(fault.FailedPrecondition, "use", o.Jailer,
				fmt.Sprintf("it is of version %s, firecracker of %s", v, version)).WithHint("install both of one release")
		}
		both, version = append(both, p), v
	}
	return both, version, nil
}

func inspectOne(ctx context.Context, path string) (p program, version string, err error) {
	if err := trusted(path); err != nil {
		return p, "", err
	}
	p.path = path
	if p.info, err = os.Stat(path); err != nil {
		return p, "", fault.Wrap(err, "look at", path)
	}
	if p.sum, err = sumOf(path); err != nil {
		return p, "", fault.Wrap(err, "hash", path)
	}
	version, err = versionOf(ctx, path)
	return p, version, err
}

func sumOf(path string) (_ string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

var versionLine = regexp.MustCompile(`(?m)^(?:Firecracker|Jailer) v(([0-9]+)\.([0-9]+)\.([0-9]+)\S*)$`)

func versionOf(ctx context.Context, path string) (string, error) {
	const most = 20 * time.Second
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", &fault.Error{Kind: fault.FailedPrecondition, Op: "run", Object: path + " --version", Err: err}
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return "", fault.New(fault.FailedPrecondition, "run", path+" --version", "it did not tell a version")
	}
	if tooOld(m[2:5]) {
		return "", fault.New(fault.FailedPrecondition, "use", path, fmt.Sprintf("version %s is too old", m[1])).
			WithHint(fmt.Sprintf("install %d.%d.%d or later", oldest[0], oldest[1], oldest[2]))
	}
	return string(m[1]), nil
}

func tooOld(parts [][]byte) bool {
	for i, raw := range parts {
		n, err := strconv.Atoi(string(raw))
		if err != nil || n != oldest[i] {
			return err != nil || n < oldest[i]
		}
	}
	return false
}

// Installed says whether there are programs to use, without running them.
func Installed() error {
	_, err := Find(EnvBinary, "firecracker")
	_, jailerErr := Find(EnvJailer, "jailer")
	return errors.Join(err, jailerErr)
}
