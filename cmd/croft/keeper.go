package main

import (
	"context"
	"errors"
	"flag"
	"time"

	"github.com/croftproject/croft/internal/keeper"
)

// keeperMain is the command `croft keeper`, which the daemon starts: it keeps guests alive while no daemon runs. With
// --shutdown it ends the keeper of a directory that holds no guest.
func keeperMain(args []string) error {
	f := flag.NewFlagSet("croft keeper", flag.ContinueOnError)
	dir := f.String("dir", "", "directory of the keeper")
	shutdown := f.Bool("shutdown", false, "end the keeper of the directory, if it holds no guest")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return errors.New("croft keeper: give it --dir")
	}
	if !*shutdown {
		return keeper.Run(context.Background(), *dir)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	k, err := keeper.Connect(ctx, *dir, keeper.Options{})
	if err != nil {
		return err
	}
	defer k.Close()
	return k.Shutdown(ctx)
}
