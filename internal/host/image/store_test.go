package image

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

func TestUnknownTemplateSaysWhatToDo(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	_, err := s.Template("nope")
	require.Equal(t, fault.NotFound, fault.KindOf(err))
	require.ErrorContains(t, err, "find template nope")
	require.Contains(t, fault.HintOf(err), "roost template ls")
	require.Contains(t, fault.HintOf(err), "make run")
	_, err = s.TemplateByDigest(strings.Repeat("a", 64))
	require.Equal(t, fault.NotFound, fault.KindOf(err))
}

func TestTemplateNamesCannotLeaveTheStore(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	for _, name := range []string{"", "../base", "a/b", ".hidden", "UPPER", strings.Repeat("a", 64), "a\x00"} {
		_, err := s.Template(name)
		require.Equal(t, fault.Invalid, fault.KindOf(err), "name %q", name)
	}
	_, err := s.TemplateByDigest("../templates/base")
	require.Equal(t, fault.Invalid, fault.KindOf(err))
}

func TestPublishedTemplateIsReadBack(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	made := publishSmall(t, s, "base", "kernel", "disk content")
	again, err := Open(s.Dir(), quiet)
	require.NoError(t, err)
	got, err := again.Template("base")
	require.NoError(t, err)
	require.Equal(t, made, got)
	require.Equal(t, []string{"virtio.ko", "virtio_blk.ko"}, got.ModuleNames())
	require.EqualValues(t, len("disk content"), got.DiskBytes)
	require.Positive(t, got.SizeBytes)
	content, err := os.ReadFile(got.DiskPath())
	require.NoError(t, err)
	require.Equal(t, "disk content", string(content))
	tree, err := os.ReadFile(got.TreePath())
	require.NoError(t, err)
	require.Equal(t, "tree of disk content", string(tree))
	require.NoError(t, got.Verify())
	byDigest, err := again.TemplateByDigest(got.Digest)
	require.NoError(t, err)
	require.Equal(t, got, byDigest)
	require.Empty(t, entries(t, s, stageDir))
}

func TestReplacedTemplateStaysByDigest(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	first := publishSmall(t, s, "base", "kernel", "one")
	second := publishSmall(t, s, "base", "kernel", "two")
	require.NotEqual(t, first.Digest, second.Digest)
	require.Equal(t, first.KernelPath(), second.KernelPath(), "equal content is kept once")
	again, err := Open(s.Dir(), quiet)
	require.NoError(t, err)
	old, err := again.TemplateByDigest(first.Digest)
	require.NoError(t, err)
	require.NoError(t, old.Verify())
	now, err := again.Template("base")
	require.NoError(t, err)
	require.Equal(t, second.Digest, now.Digest)
	all, err := again.List()
	require.NoError(t, err)
	require.Len(t, all, 1)
}

func TestPublishersInParallelAllSucceed(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	var wg sync.WaitGroup
	for i := range 8 {
		other, err := Open(s.Dir(), quiet)
		require.NoError(t, err)
		work, d := smallDraft(t, other, "base", "kernel", []string{"even", "odd"}[i%2])
		wg.Go(func() {
			got, err := other.publish(d)
			if err == nil {
				err = got.Verify()
			}
			if err := work.remove(); err != nil {
				t.Error(err)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Len(t, entries(t, s, blobsDir), 5, "one kernel, two disks, two trees")
	require.Len(t, entries(t, s, manifestsDir), 2)
	require.Empty(t, entries(t, s, stageDir))
}

func TestFailedPublishLeavesNothing(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	old := publishSmall(t, s, "base", "kernel", "old")
	work, d := smallDraft(t, s, "base", "other kernel", "new")
	// A directory in the manifest's place makes the commit fail.
	d.Name = "broken"
	require.NoError(t, os.MkdirAll(s.path(templatesDir, "broken.json", "x"), 0o700))
	_, err := s.publish(d)
	require.Error(t, err)
	require.NoError(t, work.remove())
	require.Len(t, entries(t, s, blobsDir), 3, "only the old template's")
	require.Empty(t, entries(t, s, stageDir))
	require.NoError(t, old.Verify())
}

func TestOpenRemovesBlobsThatWereNeverPublished(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	kept := publishSmall(t, s, "base", "kernel", "kept")
	work, d := smallDraft(t, s, "base", "kernel", "lost")
	require.NoError(t, d.measure())
	added, err := s.addBlobs(&d) // and here the process died
	require.NoError(t, err)
	require.Len(t, added, 2, "disk and tree")
	require.NoError(t, work.remove())
	_, err = Open(s.Dir(), quiet)
	require.NoError(t, err)
	require.NotSubset(t, entries(t, s, blobsDir), added[:1])
	require.NotSubset(t, entries(t, s, blobsDir), added[1:])
	require.NoError(t, kept.Verify())
}

func TestOpenCompletesAPublishThatDiedAfterItsCommit(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	made := publishSmall(t, s, "base", "kernel", "disk")
	require.NoError(t, os.Remove(s.path(manifestsDir, made.Digest+".json")))
	require.NoError(t, os.WriteFile(s.path(templatesDir, ".new-123"), []byte("{"), 0o600))
	again, err := Open(s.Dir(), quiet)
	require.NoError(t, err)
	_, err = again.TemplateByDigest(made.Digest)
	require.NoError(t, err)
	require.Equal(t, []string{"base.json"}, entries(t, s, templatesDir))
}

func TestBrokenManifestHidesNoOther(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	good := publishSmall(t, s, "good", "kernel", "disk")
	require.NoError(t, os.WriteFile(s.path(templatesDir, "bad.json"), []byte("{"), 0o600))
	again, err := Open(s.Dir(), quiet)
	require.NoError(t, err)
	all, err := again.List()
	require.NoError(t, err)
	require.Equal(t, []Template{good}, all)
	_, err = again.Template("bad")
	require.ErrorContains(t, err, "bad.json")
}

func TestManifestCannotNameFilesOutside(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	publishSmall(t, s, "base", "kernel", "disk")
	path := s.path(templatesDir, "base.json")
	var m Template
	require.NoError(t, readJSON(path, &m))
	for _, f := range m.pointers() {
		kept := f.Path
		f.Path = "../../etc/passwd"
		require.NoError(t, writeJSON(path, m))
		_, err := s.Template("base")
		require.ErrorContains(t, err, "leaves the store", f.Name)
		f.Path = kept
	}
}

func TestDamageIsSeen(t *testing.T) {
	t.Parallel()
	for part, path := range map[string]func(Template) string{"disk": Template.DiskPath, "tree": Template.TreePath} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			s := openStore(t)
			made := publishSmall(t, s, "base", "kernel", "disk")
			file := path(made)
			content, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, os.Chmod(file, 0o600))
			content[len(content)-1]++
			require.NoError(t, os.WriteFile(file, content, 0o600))
			err = made.Verify()
			require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
			require.NotEmpty(t, fault.HintOf(err))
			require.NoError(t, os.Truncate(file, 1))
			_, err = s.Template("base")
			require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
			require.NoError(t, os.Remove(file))
			_, err = s.Template("base")
			require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
		})
	}
}

// An older Roost's template has no tree: sandboxes made from it go on, and Ensure wants another.
func TestTemplateWithoutATree(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	r := Recipe{
		Name: "base", Suite: "bookworm", Mirrors: []string{"deb x"}, KernelPackage: "linux", Modules: []string{"virtio"},
		DefaultUser: "user", Hostname: "roost",
	}
	require.NoError(t, r.Validate())
	work, d := smallDraft(t, s, r.Name, "kernel", "disk")
	d.RecipeDigest = hashJSON(r) // all that the digest covered then
	require.NoError(t, os.Remove(d.Tree.Path))
	d.Tree = File{}
	old, err := s.publish(d)
	require.NoError(t, err)
	require.NoError(t, work.remove())
	require.Empty(t, old.TreePath())
	require.NoError(t, old.Verify())
	again, err := Open(s.Dir(), quiet)
	require.NoError(t, err)
	byDigest, err := again.TemplateByDigest(old.Digest)
	require.NoError(t, err)
	require.Equal(t, old, byDigest)
	_, err = s.Ensure(t.Context(), r, BuildOptions{})
	require.ErrorContains(t, err, "no cache directory given", "it builds")

	withTree := publishSmall(t, s, "base", "kernel", "disk")
	require.Equal(t, old.DiskPath(), withTree.DiskPath())
	require.NotEqual(t, old.Digest, withTree.Digest, "the digest covers the tree")
	require.Greater(t, withTree.SizeBytes, old.SizeBytes)
}

func TestStoreIsPrivate(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	publishSmall(t, s, "base", "kernel", "disk")
	require.NoError(t, filepath.WalkDir(s.Dir(), func(path string, e os.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := e.Info()
		require.NoError(t, err)
		require.Zero(t, info.Mode().Perm()&0o077, "%s is %v", path, info.Mode())
		return nil
	}))
}

// Its owner may remove a stage between our listing and our look at it.
func TestSweepOfAStageThatIsGone(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	require.NoError(t, s.sweepStage(s.path(stageDir, "gone.lock")))
}
