package image

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/roosthq/roost/internal/fault"
)

const aptHint = "check that `apt-get update` works on this host"

// hostApt is the host's own apt, as its administrator set it up.
type hostApt struct{}

// sources are the host's mirrors of a suite as apt source lines, security and updates
// included; none when the host is of another release or has never updated.
func (hostApt) sources(ctx context.Context, suite string) ([]string, error) {
	const form = "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
	out, err := command{hint: aptHint}.output(ctx, "apt-get", "indextargets", "--format", form, "Created-By: Packages")
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(out) {
		field := strings.Split(strings.TrimSpace(line), "|")
		if len(field) != 5 || field[0] != "Debian" || !ofSuite(field[1], suite) {
			continue
		}
		lines = append(lines, strings.Join(append([]string{"deb"}, field[2:]...), " "))
	}
	return lines, nil
}

// ofSuite accepts the suite, its security and its updates, not its backports.
func ofSuite(codename, suite string) bool {
	return codename == suite || codename == suite+"-security" || codename == suite+"-updates"
}

// debPackage is a package at one version.
type debPackage struct {
	name, version, sha256 string
}

// resolve finds the newest version of a package, or, when it is a metapackage, of the kernel
// that it depends on. Package lists that know neither are fetched once.
func (a hostApt) resolve(ctx context.Context, name string) (debPackage, error) {
	p, err := a.lookup(ctx, name)
	if err == nil || ctx.Err() != nil {
		return p, err
	}
	if err := a.update(ctx); err != nil {
		return p, err
	}
	return a.lookup(ctx, name)
}

func (a hostApt) lookup(ctx context.Context, name string) (debPackage, error) {
	record, err := a.show(ctx, name)
	if err != nil {
		return debPackage{}, err
	}
	if image := kernelDependency(record["Depends"]); image != "" {
		name = image
		if record, err = a.show(ctx, name); err != nil {
			return debPackage{}, err
		}
	}
	p := debPackage{name, record["Version"], record["SHA256"]}
	if p.version == "" || !digestForm.MatchString(p.sha256) {
		return p, fault.New(fault.NotFound, "find package", name, "apt gives no version and digest of it").WithHint(aptHint)
	}
	return p, nil
}

// kernelDependency finds "linux-image-6.1.0-56-cloud-amd64" in a Depends field.
func kernelDependency(depends string) string {
	for dep := range strings.SplitSeq(depends, ",") {
		if name, _, _ := strings.Cut(strings.TrimSpace(dep), " "); strings.HasPrefix(name, "linux-image-") {
			return name
		}
	}
	return ""
}

// show reads the record of the candidate version.
func (hostApt) show(ctx context.Context, name string) (map[string]string, error) {
	out, err := command{hint: aptHint}.output(ctx, "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return nil, err
	}
	record := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(out))
	for lines.Scan() && lines.Text() != "" {
		if key, value, ok := strings.Cut(lines.Text(), ": "); ok {
			record[key] = value
		}
	}
	return record, nil
}

// update fetches the package lists, waiting for another apt to finish.
func (hostApt) update(ctx context.Context) error {
	return command{hint: aptHint}.run(ctx, "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", "update")
}

// fetch gives the package's file, from cacheDir when it is there already. Its digest is
// checked on every use: the cache may have been cut short by a crash.
func (a hostApt) fetch(ctx context.Context, p debPackage, cacheDir, workDir string) (string, error) {
	cached := filepath.Join(cacheDir, p.sha256+".deb")
	if sum, _, err := hashFile(cached); err == nil && sum == p.sha256 {
		return cached, nil
	}
	path, err := a.download(ctx, p, workDir)
	if err != nil {
		return "", err
	}
	if err := copyFile(path, cached); err != nil {
		return "", fail(err, "keep package", cached)
	}
	return path, pruneExcept(cacheDir, cached)
}

func (hostApt) download(ctx context.Context, p debPackage, workDir string) (string, error) {
	// As root: the _apt user cannot write into our private directory, and apt checks the
	// signature's digest either way.
	err := command{dir: workDir, hint: aptHint}.run(ctx, "apt-get", "-qq", "-o", "APT::Sandbox::User=root",
		"download", p.name+"="+p.version)
	if err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(workDir, p.name+"_*.deb"))
	if err != nil || len(found) != 1 {
		return "", fault.New(fault.Internal, "download", p.name, "apt left no package file")
	}
	sum, _, err := hashFile(found[0])
	if err == nil && sum != p.sha256 {
		return "", fault.New(fault.Internal, "download", p.name, "digest differs from the package list's")
	}
	return found[0], fail(err, "read", found[0])
}

// pruneExcept keeps a cache of one: older kernels are never asked for again.
func pruneExcept(dir, keep string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		if path == keep {
			continue
		}
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return fail(err, "prune", path)
		}
	}
	return nil
}
