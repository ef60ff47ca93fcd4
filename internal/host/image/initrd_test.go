package image

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

type initrdEntry struct {
	mode    cpio.FileMode
	content string
}

// readInitrd reads concatenated archives as the kernel does: later entries win.
func readInitrd(t *testing.T, path string) map[string]initrdEntry {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	in := bufio.NewReader(f)
	all := map[string]initrdEntry{}
	for {
		if _, err := in.Peek(1); errors.Is(err, io.EOF) {
			return all
		}
		readArchive(t, cpio.NewReader(in), all)
		// The trailer's header is 110 bytes and its name 11: three bytes of padding follow.
		_, err := in.Discard(3)
		require.NoError(t, err)
	}
}

func readArchive(t *testing.T, r *cpio.Reader, all map[string]initrdEntry) {
	t.Helper()
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Zero(t, h.Uid)
		all[h.Name] = initrdEntry{h.Mode, string(data)}
	}
}

func TestInitrdHoldsGuestModulesAndBootConfig(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	tpl := publishSmall(t, s, "base", "kernel", "disk")
	guest := filepath.Join(t.TempDir(), "roost-guest")
	require.NoError(t, os.WriteFile(guest, []byte("guest binary"), 0o600))
	dst := filepath.Join(t.TempDir(), "initrd")
	boot := BootConfig{ControlToken: "secret", Hostname: "roost", Address: "192.0.2.2/30", Gateway: "192.0.2.1", DNS: "192.0.2.1", MAC: "02:00:00:00:00:01"}
	require.NoError(t, s.Initrd(tpl, guest, boot, dst))

	info, err := os.Stat(dst)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	got := readInitrd(t, dst)
	require.Equal(t, initrdEntry{typeReg | 0o755, "guest binary"}, got["init"])
	require.Equal(t, "module one", got["roost/modules/virtio.ko"].content)
	require.Equal(t, "module two", got["roost/modules/virtio_blk.ko"].content)
	require.EqualValues(t, typeChar|0o600, got["dev/console"].mode)
	require.EqualValues(t, typeChar|0o666, got["dev/null"].mode)
	for _, dir := range initrdDirs {
		require.EqualValues(t, typeDir|0o755, got[dir].mode, dir)
	}
	require.EqualValues(t, typeReg|0o600, got["roost/boot.json"].mode)
	require.JSONEq(t, `{"control_token":"secret","root_device":"/dev/vda","modules":["virtio.ko","virtio_blk.ko"],
		"hostname":"roost","address":"192.0.2.2/30","gateway":"192.0.2.1","dns":"192.0.2.1",
		"mac":"02:00:00:00:00:01","default_user":"user","envs":{}}`, got["roost/boot.json"].content)
}

func TestDeviceNodesHaveTheirNumbers(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	c := &newcWriter{w: &out}
	c.char("dev/console", 0o600, 5, 1)
	require.NoError(t, c.close())
	// rdev major and minor are the tenth and eleventh fields of eight digits after the magic.
	require.Equal(t, "0000000500000001", out.String()[6+9*8:6+11*8])
	require.Zero(t, out.Len()%4)
}

func TestSharedPartIsMadeOncePerGuest(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	tpl := publishSmall(t, s, "base", "kernel", "disk")
	dir := t.TempDir()
	guest, dst := filepath.Join(dir, "guest"), filepath.Join(dir, "initrd")
	for i, content := range []string{"one", "one", "two"} {
		require.NoError(t, os.WriteFile(guest, []byte(content), 0o600))
		boot := BootConfig{ControlToken: strings.Repeat("t", i+1)}
		require.NoError(t, s.Initrd(tpl, guest, boot, dst))
		got := readInitrd(t, dst)
		require.Equal(t, content, got["init"].content)
		var read BootConfig
		require.NoError(t, json.Unmarshal([]byte(got["roost/boot.json"].content), &read))
		require.Equal(t, boot.ControlToken, read.ControlToken, "the old file is replaced")
	}
	require.Len(t, entries(t, s, initrdDir), 2)
	for i := range 2 * keptInitrds {
		require.NoError(t, os.WriteFile(guest, []byte{byte(i)}, 0o600))
		require.NoError(t, s.Initrd(tpl, guest, BootConfig{ControlToken: "t"}, dst))
	}
	require.Len(t, entries(t, s, initrdDir), keptInitrds)
	require.Empty(t, entries(t, s, stageDir))
}

func TestInitrdRefusals(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	tpl := publishSmall(t, s, "base", "kernel", "disk")
	dst := filepath.Join(t.TempDir(), "initrd")
	err := s.Initrd(tpl, "/nonexistent/roost-guest", BootConfig{ControlToken: "x"}, dst)
	require.Equal(t, fault.NotFound, fault.KindOf(err))
	require.ErrorContains(t, err, "guest agent")
	err = s.Initrd(tpl, "/bin/true", BootConfig{}, dst)
	require.Equal(t, fault.Invalid, fault.KindOf(err))
	require.NoFileExists(t, dst)
}

func TestBootDigestLeavesTheTokenOut(t *testing.T) {
	t.Parallel()
	a := BootConfig{ControlToken: "one", Hostname: "roost"}
	b := BootConfig{ControlToken: "two", Hostname: "roost"}
	require.Equal(t, a.Digest(), b.Digest())
	b.Address = "192.0.2.2/30"
	require.NotEqual(t, a.Digest(), b.Digest())
}
