// A click on a picture opens it in full size: on a telephone its labels are small.
document.addEventListener("DOMContentLoaded", () => {
  for (const picture of document.querySelectorAll("article img")) {
    if (picture.closest("a")) continue;
    const link = document.createElement("a");
    link.href = picture.src;
    link.title = "full size";
    picture.replaceWith(link);
    link.append(picture);
  }
});
