package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/roosthq/roost/internal/fault"
)

// sourceDate stamps what the tools would stamp with the time of the build, so that equal
// content gives equal images as far as the tools let it.
const sourceDate = "1700000000"

// makeRoot builds the root directory with mmdebstrap. Packages that were fetched before come
// from cacheDir, and new ones are kept there.
func makeRoot(ctx context.Context, r Recipe, cacheDir, workDir string) (string, error) {
	b := rootBuild{recipe: r, cacheDir: cacheDir, workDir: workDir, root: filepath.Join(workDir, "root")}
	if err := b.prepare(ctx); err != nil {
		return "", fault.Wrap(err, "prepare root of template", r.Name)
	}
	env := []string{"TMPDIR=" + workDir, "SOURCE_DATE_EPOCH=" + sourceDate}
	if err := (command{env: env, hint: aptHint}).run(ctx, "mmdebstrap", b.args()...); err != nil {
		return "", fault.Wrap(err, "build root of template", r.Name)
	}
	if err := b.finish(); err != nil {
		return "", fail(err, "finish root of template", r.Name)
	}
	return b.root, fail(keepPackages(b.path("debs"), cacheDir), "keep packages in", cacheDir)
}

type rootBuild struct {
	recipe            Recipe
	cacheDir, workDir string
	root              string
}

func (b rootBuild) path(name string) string { return filepath.Join(b.workDir, name) }

// prepare writes what mmdebstrap reads: the mirrors, the packages at hand, the script.
func (b rootBuild) prepare(ctx context.Context) error {
	mirrors, err := hostApt{}.sources(ctx, b.recipe.Suite)
	if err != nil {
		return err
	}
	if len(mirrors) == 0 {
		mirrors = b.recipe.Mirrors
	}
	if err := os.Mkdir(b.path("debs"), 0o700); err != nil {
		return err
	}
	if err := linkPackages(b.cacheDir, b.path("debs")); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(b.path("mirrors.list"), lines(mirrors), 0o600),
		os.WriteFile(b.path("customize.sh"), []byte(b.recipe.Customize), 0o600))
}

// args: root mode, because we are root and the namespaces around it keep its mounts from the
// host; a directory and not a tar, because mke2fs reads one.
func (b rootBuild) args() []string {
	args := []string{
		"--quiet", "--mode=root", "--variant=minbase", "--format=directory",
		"--include=" + strings.Join(b.recipe.Packages, ","),
		// The private directory is closed to the _apt user.
		`--aptopt=APT::Sandbox::User "root"`,
		`--aptopt=Acquire::Languages "none"`,
		`--aptopt=Acquire::Retries "3"`,
		// An image that is not finished is thrown away: no need to sync each file.
		"--dpkgopt=force-unsafe-io",
		"--skip=essential/unlink", // keep what was downloaded for the next build
	}
	for _, option := range b.pathOptions() {
		args = append(args, "--dpkgopt="+option)
	}
	const archives = `"$1"/var/cache/apt/archives/`
	debs := quote(b.path("debs"))
	return append(args,
		"--setup-hook=mkdir -p "+archives+` && find `+debs+` -name '*.deb' -exec mv -t `+archives+` {} +`,
		// What the mirrors no longer offer is not worth keeping.
		`--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get -qq autoclean`,
		"--customize-hook=find "+archives+` -name '*.deb' -exec mv -t `+debs+` {} +`,
		"--customize-hook=sh -eu "+quote(b.path("customize.sh"))+` "$1" `+quote(b.recipe.DefaultUser),
		b.recipe.Suite, b.root, b.path("mirrors.list"))
}

func (b rootBuild) pathOptions() []string {
	var options []string
	for _, p := range b.recipe.ExcludePaths {
		options = append(options, "path-exclude="+p)
	}
	for _, p := range b.recipe.IncludePaths {
		options = append(options, "path-include="+p)
	}
	return options
}

// finish removes what the build and this host left in the root, and gives every template what
// it must have whatever its recipe's script does.
func (b rootBuild) finish() error {
	for _, name := range []string{
		"etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap", "etc/apt/sources.list.d/0000mirrors.list",
		"var/lib/dbus/machine-id",
	} {
		if err := removeIfThere(filepath.Join(b.root, name)); err != nil {
			return err
		}
	}
	if err := makeMountPoints(b.root); err != nil {
		return err
	}
	files := map[string]string{
		"etc/apt/sources.list": string(lines(b.recipe.Mirrors)),
		"etc/hostname":         b.recipe.Hostname + "\n",
		"etc/hosts":            "127.0.0.1\tlocalhost\n127.0.1.1\t" + b.recipe.Hostname + "\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		// The guest agent writes these: the address of the slot's DNS, an identity of its own.
		"etc/resolv.conf": "",
		"etc/machine-id":  "",
		"etc/fstab":       "# the guest agent mounts what there is\n",
		// What a sandbox installs leaves out the same documentation.
		"etc/dpkg/dpkg.cfg.d/90roost": string(lines(b.pathOptions())),
	}
	for name, content := range files {
		if err := replaceFile(filepath.Join(b.root, name), content); err != nil {
			return err
		}
	}
	return nil
}

// makeMountPoints makes what a guest mounts over, in a tree that nobody can add to later. What
// packages made stays as it is.
func makeMountPoints(root string) error {
	for name, mode := range map[string]os.FileMode{
		"proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "tmp": 0o777 | os.ModeSticky,
	} {
		path := filepath.Join(root, name)
		switch err := os.Mkdir(path, mode); {
		case errors.Is(err, fs.ErrExist):
		case err != nil:
			return err
		default:
			if err := os.Chmod(path, mode); err != nil { // whatever our umask is
				return err
			}
		}
	}
	return nil
}

// replaceFile does not write through a link that a package may have put there.
func replaceFile(path, content string) error {
	if err := removeIfThere(path); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil { //nolint:gosec // a guest's world-readable file
		return err
	}
	return os.Chmod(path, 0o644) //nolint:gosec // whatever our umask is
}

// linkPackages brings cached packages into the build without copying where it can.
func linkPackages(from, to string) error {
	paths, err := filepath.Glob(filepath.Join(from, "*.deb"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := linkOrCopy(path, filepath.Join(to, filepath.Base(path))); err != nil {
			return err
		}
	}
	return nil
}

// keepPackages makes the cache what the build ended with.
func keepPackages(from, cache string) error {
	if err := linkPackages(from, cache); err != nil {
		return err
	}
	paths, err := filepath.Glob(filepath.Join(cache, "*.deb"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		if _, err := os.Lstat(filepath.Join(from, filepath.Base(path))); err == nil {
			continue
		}
		if err := removeIfThere(path); err != nil {
			return err
		}
	}
	return nil
}

func lines(all []string) []byte { return []byte(strings.Join(all, "\n") + "\n") }

// quote makes a word of the shell.
func quote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }
