package image

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// crashEnv makes the test binary a process that stages and then waits to be killed.
const crashEnv = "IMAGE_TEST_CRASH_STORE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashEnv); dir != "" {
		crashingStager(dir)
	}
	goleak.VerifyTestMain(m)
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func openStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "images"), quiet)
	require.NoError(t, err)
	return s
}

// publishSmall publishes a template of tiny files. Equal content makes equal blobs.
func publishSmall(t *testing.T, s *Store, name, kernel, disk string) Template {
	t.Helper()
	work, d := smallDraft(t, s, name, kernel, disk)
	got, err := s.publish(d)
	require.NoError(t, err)
	require.NoError(t, work.remove())
	return got
}

func smallDraft(t *testing.T, s *Store, name, kernel, disk string) (*workspace, draft) {
	t.Helper()
	work, err := s.newWorkspace()
	require.NoError(t, err)
	d := draft{Template: Template{Name: name, CreatedAt: time.Now().UTC(), DefaultUser: "user", RecipeDigest: "r"}}
	d.kernelDir, err = work.mkdir("kernel")
	require.NoError(t, err)
	d.diskDir, err = work.mkdir("disk")
	require.NoError(t, err)
	d.treeDir, err = work.mkdir("tree")
	require.NoError(t, err)
	d.nameFiles([]string{"virtio", "virtio_blk"})
	for path, content := range map[string]string{
		d.Kernel.Path: kernel, d.Disk.Path: disk, d.Tree.Path: "tree of " + disk, d.Modules[0].Path: "module one", d.Modules[1].Path: "module two",
	} {
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	return work, d
}

// entries are the names in a directory of the store.
func entries(t *testing.T, s *Store, dir string) []string {
	t.Helper()
	found, err := os.ReadDir(s.path(dir))
	require.NoError(t, err)
	names := []string{}
	for _, e := range found {
		names = append(names, e.Name())
	}
	return names
}
