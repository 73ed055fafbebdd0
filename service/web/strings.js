// Every word that the page says, in every language that it speaks.

const STRINGS = {
  en: {
    tagline: "Your photo, painted by a neural network. It stays on this server and is not kept.",
    language: "Language",
    picture: "Picture",
    invitation: "Drop a photo here, or paste one",
    choose: "Choose a photo",
    camera: "Camera",
    example: "Try an example",
    formats: "JPEG, PNG or WebP",
    compare: "Before and after: how much of the photo is seen, from the left",
    brushHelp: "Brush: draw with the pointer, or move with the arrow keys and press space",
    download: "Download full size",
    retry: "Try again",
    another: "Another photo",
    styles: "Styles",
    mix: "Mix",
    look: "Look",
    strength: "Strength",
    color: "Colours",
    colorNone: "the painting's",
    colorLuminance: "the photo's",
    colorHistogram: "the photo's palette",
    brush: "Paint only a part",
    brushStart: "Brush",
    erase: "Erase",
    invert: "Invert",
    clear: "Whole picture",
    size: "Size",
    snap: "Take the photo",
    cancel: "Cancel",
    reference: "Reference for programs",
    before: "Your photo",
    after: "Your photo in the style {style}",
    weight: "Weight of {title}",
    loading: "Loading the styles…",
    waiting: "The models are still loading; this page goes on by itself.",
    painting: "Painting…",
    paintingFull: "Painting at full size…",
    paintingTiles: "Painting at full size… {percent} %",
    jobEnded: "The server has {status} the job. Try again.",
    done: "{style} · {seconds} s",
    saved: "Saved: {width} × {height} pixels.",
    chooseStyle: "Choose a style.",
    notAnImage: "That is not a JPEG, PNG or WebP picture. Choose another file.",
    unreadable: "This browser cannot open the picture: it is damaged or too large. Try a smaller copy.",
    cameraRefused: "The camera may not be used here. Allow it in the browser's settings, or choose a photo instead.",
    unreachable: "The server does not answer. Check that it is running, then try again.",
    busy: "The server is busy; trying again in {seconds} s.",
    answered: "The server answered {status}.",
  },
  zh: {
    tagline: "让神经网络为你的照片作画。照片只在本服务器上处理，不会保存。",
    language: "语言",
    picture: "画面",
    invitation: "把照片拖到这里，或直接粘贴",
    choose: "选择照片",
    camera: "拍照",
    example: "用示例试试",
    formats: "支持 JPEG、PNG、WebP",
    compare: "前后对比：从左侧起显示多少原图",
    brushHelp: "画笔：用指针涂抹，或用方向键移动、按空格键落笔",
    download: "下载原尺寸",
    retry: "重试",
    another: "换一张照片",
    styles: "风格",
    mix: "混合",
    look: "效果",
    strength: "强度",
    color: "色彩",
    colorNone: "用画作的",
    colorLuminance: "用照片的",
    colorHistogram: "用照片的色调",
    brush: "只画一部分",
    brushStart: "画笔",
    erase: "擦除",
    invert: "反选",
    clear: "整幅",
    size: "粗细",
    snap: "拍摄",
    cancel: "取消",
    reference: "开发者参考",
    before: "你的照片",
    after: "{style} 风格的照片",
    weight: "{title} 的比重",
    loading: "正在载入风格…",
    waiting: "模型仍在载入，页面会自动继续。",
    painting: "正在作画…",
    paintingFull: "正在以原尺寸作画…",
    paintingTiles: "正在以原尺寸作画… {percent} %",
    jobEnded: "服务器已结束该任务（{status}），请重试。",
    done: "{style} · {seconds} 秒",
    saved: "已保存：{width} × {height} 像素。",
    chooseStyle: "请选择一种风格。",
    notAnImage: "这不是 JPEG、PNG 或 WebP 图片，请换一个文件。",
    unreadable: "浏览器打不开这张图片：文件已损坏或过大。请换一张小一些的。",
    cameraRefused: "无法使用相机。请在浏览器设置中允许，或改为选择照片。",
    unreachable: "服务器没有响应。请确认它正在运行，然后重试。",
    busy: "服务器正忙，{seconds} 秒后自动重试。",
    answered: "服务器返回了 {status}。",
  },
};

let language = "en";

export function t(key, values = {}) {
  return STRINGS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** The language chosen last, else the browser's, else English. */
export function preferred() {
  const wanted = [localStorage.getItem("language"), ...navigator.languages].filter(Boolean);
  return wanted.map((name) => name.slice(0, 2)).find((name) => name in STRINGS) ?? "en";
}

/** Say everything on the page in `name`. */
export function speak(name) {
  language = name;
  localStorage.setItem("language", name);
  document.documentElement.lang = name === "zh" ? "zh-Hans" : name;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]")) element.setAttribute("aria-label", t(element.dataset.tLabel));
}
