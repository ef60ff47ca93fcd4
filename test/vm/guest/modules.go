package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func loadModules(list []Module) error {
	for _, m := range list {
		if err := load(m); err != nil {
			return fmt.Errorf("load module %s: %w", m.Name, err)
		}
	}
	return nil
}

func load(m Module) error {
	f, err := os.Open(filepath.Join(ModuleDir, m.Name+".ko"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), m.Params, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
