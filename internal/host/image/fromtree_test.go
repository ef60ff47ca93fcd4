package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// treeRequest is for a small tree that content makes one of many.
func treeRequest(t *testing.T, source Template, name, content string) FromTreeRequest {
	t.Helper()
	return FromTreeRequest{
		Name: name, By: "here", Source: source,
		Tar: bytes.NewReader(pack(t, dir("./"), dir("etc/"), file("etc/motd", content), symlink("bin", "usr/bin"))),
	}
}

func needForms(t *testing.T) {
	t.Helper()
	needTools(t, "mke2fs", "debugfs", "mkfs.erofs", "fsck.erofs")
}

func TestFromTree(t *testing.T) {
	t.Parallel()
	needForms(t)
	s := openStore(t)
	base := publishSmall(t, s, "base", "kernel", "disk")
	var steps []string
	r := treeRequest(t, base, "mine", "hello\n")
	r.Report = func(p Progress) {
		if p.Done {
			steps = append(steps, p.Step)
		}
	}
	made, err := s.FromTree(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, []string{"unpack the files", "make the root disk", "make the root tree", "check and publish the template"}, steps)
	require.Equal(t, &Made{By: "here"}, made.Made)
	require.Nil(t, base.Made)
	require.Equal(t, []any{base.KernelPath(), base.ModulePaths(), base.DefaultUser, base.KernelVersion},
		[]any{made.KernelPath(), made.ModulePaths(), made.DefaultUser, made.KernelVersion}, "shared")
	require.NoError(t, made.Verify())
	again, err := Open(s.Dir(), quiet)
	require.NoError(t, err)
	for _, find := range []func() (Template, error){
		func() (Template, error) { return again.Template("mine") },
		func() (Template, error) { return again.TemplateByDigest(made.Digest) },
	} {
		got, err := find()
		require.NoError(t, err)
		require.Equal(t, made, got)
	}
	require.Contains(t, runTool(t, "debugfs", "-R", "cat /etc/motd", made.DiskPath()), "hello\n")
	for _, name := range []string{"proc", "sys", "dev", "run", "tmp"} {
		require.Contains(t, runTool(t, "debugfs", "-R", "stat /"+name, made.DiskPath()), "Type: directory", "mount points are there")
	}
	require.Empty(t, entries(t, s, stageDir))
	require.Len(t, entries(t, s, blobsDir), 5)
}

// TestFromTreeNames: a name is given once; who repeats an operation is answered.
func TestFromTreeNames(t *testing.T) {
	t.Parallel()
	needForms(t)
	s := openStore(t)
	base := publishSmall(t, s, "base", "kernel", "disk")
	refused := func(r FromTreeRequest, kind fault.Kind) {
		t.Helper()
		r.Tar = iotest.ErrReader(errors.New("it was read"))
		_, err := s.FromTree(t.Context(), r)
		require.Equal(t, kind, fault.KindOf(err), "%v", err)
		require.NotContains(t, err.Error(), "it was read")
	}
	r := treeRequest(t, base, "mine", "one")
	r.Operation = "op1"
	made, err := s.FromTree(t.Context(), r)
	require.NoError(t, err)
	r.Tar = iotest.ErrReader(errors.New("it was read"))
	repeated, err := s.FromTree(t.Context(), r)
	require.NoError(t, err, "there is nothing to read")
	require.Equal(t, made, repeated)
	for _, change := range []func(*FromTreeRequest){
		func(r *FromTreeRequest) { r.Operation = "op2" }, func(r *FromTreeRequest) { r.Operation = "" },
		func(r *FromTreeRequest) { r.By = "elsewhere" }, func(r *FromTreeRequest) { r.Name = "base" },
	} {
		other := r
		change(&other)
		refused(other, fault.AlreadyExists)
	}
	for _, change := range []func(*FromTreeRequest){
		func(r *FromTreeRequest) { r.Name = "../x" }, func(r *FromTreeRequest) { r.By = "" }, func(r *FromTreeRequest) { r.Source = Template{} },
		func(r *FromTreeRequest) { r.MaxBytes = -1 }, func(r *FromTreeRequest) { r.MaxEntries = -1 },
	} {
		bad := r
		change(&bad)
		refused(bad, fault.Invalid)
	}
	r.Name, r.Tar = "other", nil
	_, err = s.FromTree(t.Context(), r)
	require.Equal(t, fault.Invalid, fault.KindOf(err))
	_, err = s.Build(t.Context(), Recipe{
		Name: "mine", Suite: "s", Mirrors: []string{"m"}, KernelPackage: "linux", Modules: []string{"m"}, DefaultUser: "user", Hostname: "roost",
	}, BuildOptions{})
	require.Equal(t, fault.AlreadyExists, fault.KindOf(err), "a recipe does not take it over: %v", err)
}

// TestFromTreeRaces: of two that want a name one gets it.
func TestFromTreeRaces(t *testing.T) {
	t.Parallel()
	needForms(t)
	s := openStore(t)
	base := publishSmall(t, s, "base", "kernel", "disk")
	results := make(chan error)
	for _, content := range []string{"one", "two"} {
		r := treeRequest(t, base, "mine", content)
		go func() {
			_, err := s.FromTree(t.Context(), r)
			results <- err
		}()
	}
	first, second := <-results, <-results
	require.True(t, (first == nil) != (second == nil), "%v; %v", first, second)
	require.True(t, fault.Is(errors.Join(first, second), fault.AlreadyExists), "%v; %v", first, second)
	require.Len(t, entries(t, s, blobsDir), 5, "nothing is left of the other")
	require.Empty(t, entries(t, s, stageDir))
}

// TestFromTreeLeavesNothing when it fails, whatever has failed.
func TestFromTreeLeavesNothing(t *testing.T) {
	t.Parallel()
	needForms(t)
	s := openStore(t)
	base := publishSmall(t, s, "base", "kernel", "disk")
	for name, c := range map[string]struct {
		kind  fault.Kind
		spoil func(r *FromTreeRequest, cancel func())
	}{
		"hostile": {fault.Invalid, func(r *FromTreeRequest, _ func()) { r.Tar = bytes.NewReader(pack(t, file("../x", "y"))) }},
		"cut":     {fault.Unavailable, func(r *FromTreeRequest, _ func()) { r.Tar = io.LimitReader(r.Tar, 1024) }},
		"sender": {fault.Unavailable, func(r *FromTreeRequest, _ func()) {
			r.Tar = io.MultiReader(r.Tar, iotest.ErrReader(fault.New(fault.Unavailable, "", "", "gone")))
		}},
		"full": {fault.ResourceExhausted, func(r *FromTreeRequest, _ func()) {
			r.MaxBytes, r.Tar = 1, bytes.NewReader(pack(t, file("large", strings.Repeat("x", 100))))
		}},
		"kernel":                {fault.FailedPrecondition, func(r *FromTreeRequest, _ func()) { r.Source.Kernel.SHA256 = "other" }},
		"cancelled before":      {fault.Canceled, func(_ *FromTreeRequest, cancel func()) { cancel() }},
		"cancelled at the disk": {fault.Canceled, func(r *FromTreeRequest, cancel func()) { r.Report = at("make the root disk", cancel) }},
		"cancelled at the tree": {fault.Canceled, func(r *FromTreeRequest, cancel func()) { r.Report = at("make the root tree", cancel) }},
		"cancelled at the end":  {fault.Canceled, func(r *FromTreeRequest, cancel func()) { r.Report = at("check and publish the template", cancel) }},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		r := treeRequest(t, base, "mine", name)
		c.spoil(&r, cancel)
		_, err := s.FromTree(ctx, r)
		cancel()
		require.Equal(t, c.kind, fault.KindOf(err), "%s: %v", name, err)
		require.ErrorContains(t, err, "make template mine", name)
		require.Empty(t, entries(t, s, stageDir), name)
		require.Len(t, entries(t, s, blobsDir), 3, name)
		require.Len(t, entries(t, s, manifestsDir), 1, name)
		require.Equal(t, []string{"base.json"}, entries(t, s, templatesDir), name)
	}
	require.NoError(t, base.Verify())
	_, err := s.FromTree(t.Context(), treeRequest(t, base, "mine", "at last"))
	require.NoError(t, err)
}

func at(step string, f func()) func(Progress) {
	return func(p Progress) {
		if p.Step == step {
			f()
		}
	}
}

// TestTreeWithAttributes: gVisor refuses files that have some in an EROFS, so there are none.
func TestTreeWithAttributes(t *testing.T) {
	t.Parallel()
	needForms(t)
	s := openStore(t)
	r := treeRequest(t, publishSmall(t, s, "base", "kernel", "disk"), "mine", "")
	r.Tar = bytes.NewReader(pack(t, dir("./"), with(file("f", "x"), xattrRecord+"user.a", "value")))
	made, err := s.FromTree(t.Context(), r)
	require.NoError(t, err)
	require.Contains(t, runTool(t, "debugfs", "-R", "ea_list /f", made.DiskPath()), "user.a")
	tree, err := os.Open(made.TreePath())
	require.NoError(t, err)
	defer tree.Close()
	img, err := openErofs(tree)
	require.NoError(t, err)
	f, err := img.find("f")
	require.NoError(t, err)
	require.Zero(t, f.word16(2), "attributes")
	list, err := img.find(attributesName)
	require.NoError(t, err, "which the guest agent is told of")
	said := make([]byte, list.size())
	_, err = tree.ReadAt(said, list.block()*blockBytes)
	require.NoError(t, err)
	require.JSONEq(t, `{"path":"Zg==","name":"user.a","value":"dmFsdWU="}`, string(said))
	require.Contains(t, runTool(t, "debugfs", "-R", "stat /"+attributesName, made.DiskPath()), "not found", "a disk has them itself")
}

// TestManySmallFiles: more inodes than a disk of that size usually has.
func TestManySmallFiles(t *testing.T) {
	t.Parallel()
	needForms(t)
	const files = 30_000
	many := []packed{dir("./")}
	for d := range files / 1000 {
		name := "d" + strings.Repeat("x", d)
		many = append(many, dir(name+"/"))
		for i := range 999 {
			many = append(many, file(name+"/"+strings.Repeat("f", i/4+1)+string(rune('a'+i%4)), ""))
		}
	}
	s := openStore(t)
	r := treeRequest(t, publishSmall(t, s, "base", "kernel", "disk"), "mine", "")
	r.Tar = bytes.NewReader(pack(t, many...))
	made, err := s.FromTree(t.Context(), r)
	require.NoError(t, err)
	require.Less(t, made.DiskBytes, int64(400<<20))
	require.Regexp(t, `Inode count: +[3-9]\d{4}|Inode count: +\d{6}`, runTool(t, "dumpe2fs", "-h", made.DiskPath()))
}

func TestRemoveAndSweep(t *testing.T) {
	t.Parallel()
	needForms(t)
	s := openStore(t)
	base := publishSmall(t, s, "base", "kernel", "disk")
	none, all := func(string) bool { return false }, func(string) bool { return true }
	make := func(by, name string) Template {
		r := treeRequest(t, base, name, "the same") // of the same files, and yet each one's own
		r.By = by
		made, err := s.FromTree(t.Context(), r)
		require.NoError(t, err)
		return made
	}
	mine, other, theirs := make("here", "mine"), make("here", "other"), make("elsewhere", "theirs")
	require.Len(t, map[string]bool{mine.Digest: true, other.Digest: true, theirs.Digest: true}, 3)
	_, err := stageSmall(t, s, smallKey(mine), "x").Publish(Warm{Record: json.RawMessage("{}")})
	require.NoError(t, err)
	kept, err := stageSmall(t, s, smallKey(base), "x").Publish(Warm{Record: json.RawMessage("{}")})
	require.NoError(t, err)

	for name, kind := range map[string]fault.Kind{"base": fault.FailedPrecondition, "theirs": fault.FailedPrecondition, "../x": fault.Invalid} {
		require.Equal(t, kind, fault.KindOf(s.Remove("here", name)), name)
	}
	sweep := func(used func(string) bool) (digests []string) {
		t.Helper()
		unused, err := s.Unused("here", used)
		require.NoError(t, err)
		gone, err := s.Sweep("here", used)
		require.NoError(t, err)
		require.Equal(t, unused, gone)
		for _, g := range gone {
			digests = append(digests, g.Digest)
			require.Positive(t, g.SizeBytes)
			require.True(t, filepath.IsAbs(g.DiskPath()))
		}
		return digests
	}
	require.Empty(t, sweep(none), "all have names")
	for range 2 {
		require.NoError(t, s.Remove("here", "mine"))
		require.NoError(t, s.Remove("here", "never-there"))
		require.NoError(t, s.Remove("elsewhere", "theirs"))
	}
	_, err = s.Template("mine")
	require.Equal(t, fault.NotFound, fault.KindOf(err))
	byDigest, err := s.TemplateByDigest(mine.Digest)
	require.NoError(t, err, "for who stands on it")
	require.NoError(t, byDigest.Verify())
	require.Empty(t, sweep(all))
	require.Equal(t, []string{mine.Digest}, sweep(none), "not that of the other installation")
	require.Empty(t, sweep(none))

	_, err = s.TemplateByDigest(mine.Digest)
	require.Equal(t, fault.NotFound, fault.KindOf(err))
	require.NoFileExists(t, mine.DiskPath())
	require.NoFileExists(t, mine.TreePath())
	warms, err := s.Warms(mine)
	require.NoError(t, err)
	require.Empty(t, warms)
	warms, err = s.Warms(base)
	require.NoError(t, err)
	require.Equal(t, []Warm{kept}, warms)
	for _, left := range []Template{base, other, theirs} {
		require.NoError(t, left.Verify())
	}
	require.Empty(t, entries(t, s, stageDir))
	again := make("here", "mine")
	require.NoError(t, again.Verify(), "the name is free")
}

// TestSweepIsCareful with what it cannot read, and goes on where it was killed.
func TestSweepIsCareful(t *testing.T) {
	t.Parallel()
	needForms(t)
	s := openStore(t)
	base := publishSmall(t, s, "base", "kernel", "disk")
	made, err := s.FromTree(t.Context(), treeRequest(t, base, "mine", "x"))
	require.NoError(t, err)
	require.NoError(t, s.Remove("here", "mine"))
	none := func(string) bool { return false }
	broken := s.path(templatesDir, "broken.json")
	require.NoError(t, os.WriteFile(broken, []byte("{"), 0o600))
	_, err = s.Sweep("here", none)
	require.ErrorContains(t, err, "broken.json", "it may be any template's name")
	require.NoError(t, made.Verify())
	require.NoError(t, os.Remove(broken))
	// Killed after the manifest was removed: Open removes the blobs.
	require.NoError(t, os.Remove(s.path(manifestsDir, made.Digest+".json")))
	again, err := Open(s.Dir(), quiet)
	require.NoError(t, err)
	require.Len(t, entries(t, again, blobsDir), 3)
	gone, err := again.Sweep("here", none)
	require.NoError(t, err)
	require.Empty(t, gone)
	require.NoError(t, base.Verify())
}

// A publisher that died after its commit point left no manifest by digest: Remove completes it first.
func TestRemoveKeepsItByDigest(t *testing.T) {
	t.Parallel()
	needForms(t)
	s := openStore(t)
	made, err := s.FromTree(t.Context(), treeRequest(t, publishSmall(t, s, "base", "kernel", "disk"), "mine", "x"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(s.path(manifestsDir, made.Digest+".json")))
	require.NoError(t, s.Remove("here", "mine"))
	_, err = s.TemplateByDigest(made.Digest)
	require.NoError(t, err)
}
