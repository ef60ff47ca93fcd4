package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/roosthq/roost/images"
	"github.com/roosthq/roost/internal/host/image"
	"github.com/roosthq/roost/internal/host/paths"
)

// downloadCache is where template builds keep packages between builds.
const downloadCache = "/var/cache/roost"

func templateBuildCommand() *cobra.Command {
	var data, cache string
	var always bool
	cmd := &cobra.Command{
		Use:   "build [NAME]",
		Short: "Build a template that ships with Roost, on this machine",
		Long: `Build a template that ships with Roost (` + strings.Join(images.Names(), ", ") + `) on this machine, as ` + "`roost up`" + ` does at its
first start. With --always it is built again, with the newest packages; sandboxes made from the
old one keep it.`,
		Example: "  roost template build base --always",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := baseTemplate
			if len(args) == 1 {
				name = args[0]
			}
			recipe, err := images.Recipe(name)
			if err != nil {
				return err
			}
			store, err := image.Open(paths.Data(data).Images(), quietLog())
			if err != nil {
				return err
			}
			build := store.Ensure
			if always {
				build = store.Build
			}
			t, err := build(cmd.Context(), recipe, image.BuildOptions{CacheDir: cache, Report: teller{out: cmd.ErrOrStderr()}.progress})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), t.Name, t.Digest)
			return err
		},
	}
	cmd.Flags().StringVar(&data, "data", dataDir(), "where everything is kept (ROOST_DATA)")
	cmd.Flags().StringVar(&cache, "download-cache", downloadCache, "where downloads are kept between builds")
	cmd.Flags().BoolVar(&always, "always", false, "build even when there is one of the same recipe")
	return cmd
}
