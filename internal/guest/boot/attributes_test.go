package boot

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestAttributesAreSetOnce(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	require.NoError(t, attributes(root), "there is no list")
	file := filepath.Join(root, "f\xff")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	list := filepath.Join(root, attributesName)
	write := func(text string) { require.NoError(t, os.WriteFile(list, []byte(text), 0o600)) }
	write(`{"path":"Zv8=","name":"user.a","value":"dmFsdWU="}` + "\n" + `{"path":"Z29uZQ==","name":"user.a","value":""}` + "\n" + `{"path":"Zv8=","name":"user.b","value":""}` + "\n")
	require.ErrorContains(t, attributes(root), "user.a of gone")
	for name, want := range map[string]string{"user.a": "value", "user.b": ""} {
		got := make([]byte, 10)
		n, err := unix.Lgetxattr(file, name, got)
		require.NoError(t, err, "one that fails stops no other")
		require.Equal(t, want, string(got[:n]))
	}
	require.NoFileExists(t, list)
	require.True(t, obtainable([]byte("\x01\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")), "CAP_CHOWN")
	require.False(t, obtainable([]byte("\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00")), "there is no 63rd")
	require.True(t, obtainable([]byte("\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00\x00")), "it is not demanded")
	write("{")
	require.Error(t, attributes(root))
	require.NoFileExists(t, list)
}
