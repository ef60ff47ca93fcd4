package image

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// withData is a file of a size with data at some places; written fills its holes with zeros.
func withData(t *testing.T, size int64, at []int64, written bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(path)
	require.NoError(t, err)
	if written {
		_, err = f.Write(make([]byte, size))
		require.NoError(t, err)
	}
	for _, a := range at {
		_, err = f.WriteAt([]byte("data"), a)
		require.NoError(t, err)
	}
	require.NoError(t, f.Truncate(size))
	require.NoError(t, f.Close())
	return path
}

func sparseSum(t *testing.T, path string) string {
	t.Helper()
	sum, size, err := hashSparse(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, info.Size(), size)
	require.Regexp(t, digestForm, sum)
	return sum
}

func TestSparseHashIsOfTheContent(t *testing.T) {
	t.Parallel()
	const size = 3<<20 + 123
	for name, at := range map[string][]int64{
		"none": nil, "first": {0}, "last": {size - 4}, "between": {1<<20 - 2, 2 << 20}, "some": {5, 100_000, 1 << 20, 3 << 20},
	} {
		sparse, full := withData(t, size, at, false), withData(t, size, at, true)
		require.Equal(t, sparseSum(t, sparse), sparseSum(t, full), name)
	}
	require.Equal(t, sparseSum(t, withData(t, 0, nil, false)), sparseSum(t, withData(t, 0, nil, true)))
}

func TestSparseHashSeesEveryChange(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	seen := map[string]string{}
	add := func(what, path string) {
		sum := sparseSum(t, path)
		require.Empty(t, seen[sum], "%s looks like %s", what, seen[sum])
		seen[sum] = what
	}
	add("zeros", withData(t, size, nil, false))
	add("shorter", withData(t, size-1, nil, false))
	add("longer by a block", withData(t, size+blockBytes, nil, false))
	for _, at := range []int64{0, 1, 8, blockBytes, 2 * blockBytes, size - blockBytes, size - 4} {
		add("data somewhere", withData(t, size, []int64{at}, false))
	}
	add("two", withData(t, size, []int64{0, blockBytes}, false))
	add("two apart", withData(t, size, []int64{0, 2 * blockBytes}, false))
	add("two far apart", withData(t, size, []int64{0, 3 * blockBytes}, false))
	add("moved", withData(t, size, []int64{blockBytes, 3 * blockBytes}, false))
	// One bit anywhere.
	path := withData(t, size, []int64{0, 70_000, 500_000}, false)
	want := sparseSum(t, path)
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		bad := bytes.Clone(content)
		bad[r.IntN(len(bad))] ^= 1 << r.IntN(8)
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		require.NotEqual(t, want, sparseSum(t, path))
	}
}

func TestDamagedSparseFileIsSeen(t *testing.T) {
	t.Parallel()
	path := withData(t, 1<<20, []int64{5}, false)
	f := File{Name: "f", Path: path, SizeBytes: 1 << 20, SHA256: sparseSum(t, path), Sparse: true}
	require.NoError(t, f.Verify())
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(f.Verify()))
}

// TestSparseTree: an inode in the first block, one far behind, deep in directories of many blocks.
func TestSparseTree(t *testing.T) {
	t.Parallel()
	needTools(t, "mkfs.erofs", "fsck.erofs")
	base := t.TempDir()
	root, aside, out := filepath.Join(base, "root"), filepath.Join(base, "aside"), filepath.Join(base, "out")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "zz/deep"), 0o755))
	require.NoError(t, os.Mkdir(aside, 0o700))
	for i := range 2000 {
		require.NoError(t, os.WriteFile(filepath.Join(root, "zz/deep", "file-with-a-name-"+string(rune('a'+i%26))+string(rune('0'+i/26))), nil, 0o600))
	}
	want := map[string][]byte{}
	for name, at := range map[string][]int64{"a": {100_000}, "zz/deep/m-sparse": {0, 200_000, 999_990}, "zz/zz": nil} {
		path := withData(t, 1_000_001, at, false)
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		want[name] = content
		runTool(t, "cp", "--sparse=always", path, filepath.Join(root, name))
	}
	before, err := os.Stat(filepath.Join(root, "zz/deep"))
	require.NoError(t, err)
	tree := filepath.Join(base, "tree.erofs")
	require.NoError(t, makeSparseTree(t.Context(), rootForm{name: "x", epoch: "4000000000"}, root, aside, tree))
	require.NoError(t, checkTree(tree))
	runTool(t, "fsck.erofs", "--extract="+out, tree)
	for name, content := range want {
		got, err := os.ReadFile(filepath.Join(out, name))
		require.NoError(t, err)
		require.True(t, bytes.Equal(content, got), name)
	}
	after, err := os.Stat(filepath.Join(out, "zz/deep"))
	require.NoError(t, err)
	require.Equal(t, before.ModTime(), after.ModTime(), "of a directory whose file was exchanged")
	n, err := allocated(tree)
	require.NoError(t, err)
	require.Less(t, n, int64(700<<10), "a file in holes takes what it holds")
}

func TestLayout(t *testing.T) {
	t.Parallel()
	usual := content{files: 10_000, bytes: 220 << 20}.layout(128)
	require.EqualValues(t, inodeRatio, usual.ratio)
	require.EqualValues(t, wholeMB(220<<20+220<<20/32+220<<20/inodeRatio*inodeBytes+16<<20+128<<20), usual.bytes)
	for _, files := range []int64{1, 100_000, 1_000_000, 5_000_000} {
		for _, bytes := range []int64{1 << 20, 500 << 20, 20 << 30} {
			c := content{files: files, bytes: bytes}
			l := c.layout(128)
			require.GreaterOrEqual(t, l.bytes/l.ratio, files+files/8, "%+v %+v: inodes", c, l)
			require.GreaterOrEqual(t, l.bytes-l.bytes/l.ratio*inodeBytes, bytes+100<<20, "%+v %+v: room", c, l)
			require.GreaterOrEqual(t, l.ratio, int64(leastRatio))
		}
	}
}
