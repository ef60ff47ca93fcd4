package firecrackertest

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Version is what the stand-in says; $PWD-independent tests may install another by InstallVersion.
const Version = "1.16.1"

const (
	vmmName    = "firecracker"
	jailerName = "jailer"
	// versionFile beside the programs tells their version.
	versionFile = "version"
)

// Install makes both programs of the running test binary.
func Install(t testing.TB) (binary, jailer string) {
	t.Helper()
	return InstallVersion(t, Version)
}

// InstallVersion makes programs that say they are of a version.
func InstallVersion(t testing.TB, version string) (binary, jailer string) {
	t.Helper()
	dir := t.TempDir()
	binary, jailer = filepath.Join(dir, vmmName), filepath.Join(dir, jailerName)
	require.NoError(t, os.WriteFile(filepath.Join(dir, versionFile), []byte(version), 0o644))
	self, err := os.Executable()
	require.NoError(t, err)
	require.NoError(t, errors.Join(place(self, binary), place(self, jailer)))
	return binary, jailer
}

func place(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
