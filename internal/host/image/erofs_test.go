package image

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

var old = time.Unix(1_500_000_000, 123_456_789)

// smallTree fills a root directory in the order of names and makes its tree.
func smallTree(t *testing.T, names ...string) (root, tree string) {
	t.Helper()
	dir := t.TempDir()
	root, tree = filepath.Join(dir, "root"), filepath.Join(dir, "tree.erofs")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	require.NoError(t, os.Chmod(root, 0o755))
	for _, name := range names {
		path := filepath.Join(root, "etc", name)
		require.NoError(t, os.WriteFile(path, []byte("content of "+name), 0o600))
		require.NoError(t, os.Chown(path, 1000, 1001))
		require.NoError(t, unix.Lsetxattr(path, "user.a", []byte(name), 0))
		require.NoError(t, unix.Lsetxattr(path, "user.shared", []byte("the same"), 0))
	}
	path := filepath.Join(root, "etc", "a")
	require.NoError(t, os.Chtimes(path, time.Time{}, old))
	require.NoError(t, os.Link(path, filepath.Join(root, "etc", "hard")))
	require.NoError(t, os.Symlink("a", filepath.Join(root, "etc", "soft")))
	require.NoError(t, os.Chmod(path, 0o755|os.ModeSetuid))
	require.NoError(t, makeMountPoints(root))
	require.NoError(t, makeTree(t.Context(), Recipe{Name: "small"}.form(), root, tree))
	return root, tree
}

func TestTreeHoldsWhatTheRootHas(t *testing.T) {
	t.Parallel()
	needTools(t, "mkfs.erofs", "fsck.erofs", "dump.erofs")
	_, tree := smallTree(t, "a", "b")
	out := filepath.Join(t.TempDir(), "out")
	runTool(t, "fsck.erofs", "--extract="+out, tree)
	stat := func(name string) (st unix.Stat_t) {
		require.NoError(t, unix.Lstat(filepath.Join(out, name), &st), name)
		return st
	}
	a, b := stat("etc/a"), stat("etc/b")
	require.Equal(t, []uint32{1000, 1001}, []uint32{a.Uid, a.Gid})
	require.EqualValues(t, 0o104755, inodeMode(t, tree, "/etc/a"), "what fsck.erofs does not unpack")
	require.Equal(t, old.UnixNano(), a.Mtim.Nano(), "an old time stays to the nanosecond")
	require.EqualValues(t, 1_700_000_000, b.Mtim.Sec, "a new one is the source date")
	content, err := os.ReadFile(filepath.Join(out, "etc/hard"))
	require.NoError(t, err)
	require.Equal(t, "content of a", string(content))
	target, err := os.Readlink(filepath.Join(out, "etc/soft"))
	require.NoError(t, err)
	require.Equal(t, "a", target)
	require.EqualValues(t, 0o41777, stat("tmp").Mode)
	require.EqualValues(t, 0o40555, stat("proc").Mode)
}

// inodeMode reads a file's mode from the image itself.
func inodeMode(t *testing.T, tree, path string) uint16 {
	t.Helper()
	found := regexp.MustCompile(`NID: (\d+)`).FindStringSubmatch(runTool(t, "dump.erofs", "--path="+path, tree))
	require.NotNil(t, found)
	nid, err := strconv.ParseInt(found[1], 10, 64)
	require.NoError(t, err)
	image, err := os.ReadFile(tree)
	require.NoError(t, err)
	inodes := int64(binary.LittleEndian.Uint32(image[erofsSuperAt+40:])) * blockBytes
	return binary.LittleEndian.Uint16(image[inodes+nid*32+4:])
}

func TestEqualTreesGiveEqualBytes(t *testing.T) {
	t.Parallel()
	needTools(t, "mkfs.erofs")
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	_, one := smallTree(t, names...)
	for i := range len(names) / 2 {
		j := len(names) - 1 - i
		names[i], names[j] = names[j], names[i]
	}
	_, two := smallTree(t, names...)
	sumOne, _, err := hashFile(one)
	require.NoError(t, err)
	sumTwo, _, err := hashFile(two)
	require.NoError(t, err)
	require.Equal(t, sumOne, sumTwo)
	_, three := smallTree(t, names[1:]...)
	sumThree, _, err := hashFile(three)
	require.NoError(t, err)
	require.NotEqual(t, sumOne, sumThree)
}

func TestDamagedTreeIsRefused(t *testing.T) {
	t.Parallel()
	needTools(t, "mkfs.erofs")
	_, tree := smallTree(t, "a", "b")
	good, err := os.ReadFile(tree)
	require.NoError(t, err)
	require.Empty(t, superblockFault(good[:blockBytes], int64(len(good))))
	super := good[erofsSuperAt:]
	require.NotZero(t, binary.LittleEndian.Uint32(super[8:])&erofsChecksum, "mkfs.erofs writes a checksum")
	for at, want := range map[int]string{0: "no EROFS", 12: "blocks", 4: "checksum", 60: "checksum", 2000: "checksum"} {
		bad := append([]byte{}, good...)
		bad[erofsSuperAt+at] ^= 1
		require.NoError(t, os.WriteFile(tree, bad, 0o600))
		err := checkTree(tree)
		require.ErrorContains(t, err, want, "byte %d", at)
		require.ErrorContains(t, err, tree)
	}
	require.NoError(t, os.WriteFile(tree, good[:len(good)-blockBytes], 0o600))
	require.ErrorContains(t, checkTree(tree), "size")
	require.NoError(t, os.Truncate(tree, 100))
	require.Error(t, checkTree(tree))
}

func TestMissingToolNamesItsPackage(t *testing.T) { //nolint:paralleltest // sets the environment
	t.Setenv("PATH", t.TempDir())
	err := makeTree(t.Context(), Recipe{Name: "small"}.form(), t.TempDir(), filepath.Join(t.TempDir(), "tree"))
	require.Equal(t, fault.FailedPrecondition, fault.KindOf(err))
	require.ErrorContains(t, err, "mkfs.erofs")
	require.Contains(t, fault.HintOf(err), "erofs-utils")
}

func TestMountPointsThatAreThereStay(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(root, "run"), 0o700))
	require.NoError(t, makeMountPoints(root))
	require.NoError(t, makeMountPoints(root))
	st, err := os.Stat(filepath.Join(root, "run"))
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|0o700, st.Mode())
}
