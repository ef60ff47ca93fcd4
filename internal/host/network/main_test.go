package network

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(attachEnv) != "" {
		attachAsVMM()
	}
	goleak.VerifyTestMain(m)
}
